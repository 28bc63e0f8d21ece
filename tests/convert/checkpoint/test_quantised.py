"""8-bit floats with a scale are their values times it; other small formats are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.checkpoint.weights import read_weights
from convert.errors import InputError

E4M3 = torch.float8_e4m3fn
FORMAT = {"format": "float8_e4m3fn"}
Tensors = dict[str, torch.Tensor]


def note(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def old(codes: torch.Tensor, scale: torch.Tensor) -> tuple[Tensors, dict[str, str]]:
    marker = {"model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=E4M3)}
    helpers = {"a.b.scale_weight": scale, "a.b.scale_input": torch.ones(())}
    return {"a.b.weight": codes, **helpers, **marker}, {}


def new(codes: torch.Tensor, scale: torch.Tensor) -> tuple[Tensors, dict[str, str]]:
    helpers = {"a.b.weight_scale": scale, "a.b.input_scale": torch.ones(())}
    return {"a.b.weight": codes, **helpers, "a.b.comfy_quant": note(FORMAT)}, {}


def in_header(codes: torch.Tensor, scale: torch.Tensor) -> tuple[Tensors, dict[str, str]]:
    layers = json.dumps({"format_version": "1.0", "layers": {"a.b": FORMAT}})
    return {"a.b.weight": codes, "a.b.weight_scale": scale}, {"_quantization_metadata": layers}


SPELLINGS = [old, new, in_header]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("wanted", [np.float16, np.float32])
def test_a_scaled_weight_is_its_codes_times_the_scale(
    spelling: Callable[..., tuple[Tensors, dict[str, str]]],
    shape: tuple[int, ...],
    wanted: type,
    file: Path,
) -> None:
    codes = torch.randn(12, 9, generator=torch.Generator().manual_seed(1)).mul(100).to(E4M3)
    scale = torch.full(shape, 0.0123)
    tensors, metadata = spelling(codes, scale)
    save_file({**tensors, "a.norm.weight": torch.ones(3)}, file, metadata)
    found = read_weights(file).tensors
    assert set(found) == {"a.b.weight", "a.norm.weight"}
    expected = (codes.float() * scale).numpy().astype(wanted)
    np.testing.assert_array_equal(found["a.b.weight"].read(wanted), expected)
    reshaped = found["a.b.weight"].reshape((9, 12)).read(wanted)
    np.testing.assert_array_equal(reshaped, expected.reshape(9, 12))


def test_the_key_of_a_scaled_weight_says_its_scale(file: Path) -> None:
    tensors, _ = old(torch.ones(4, 4).to(E4M3), torch.ones(()))
    save_file({**tensors, "c.weight": torch.ones(4, 4).to(E4M3), "c.scale_weight": tensors[
        "a.b.scale_weight"].clone()}, file)  # fmt: skip
    one, other = (read_weights(file).tensors[f"{name}.weight"].key({file: "0"}) for name in
                  ("a.b", "c"))  # fmt: skip
    assert one != other
    json.dumps(one)


def test_a_file_of_plain_8_bit_floats_needs_no_scale(file: Path) -> None:
    save_file({"a.weight": torch.ones(4, 4).to(E4M3)}, file)
    assert read_weights(file).tensors["a.weight"].read(np.float16).sum() == 16


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_missing_scale_is_an_error_that_names_the_weights(
    spelling: Callable[..., tuple[Tensors, dict[str, str]]], file: Path
) -> None:
    codes = torch.ones(4, 4).to(E4M3)
    tensors, metadata = spelling(codes, torch.ones(()))
    embedding = {"token_embedding.weight": codes.clone(), "norm.weight": codes[0].clone()}
    save_file({**tensors, **embedding}, file, metadata)
    read_weights(file)  # an embedding and a norm are no Linear
    save_file({**tensors, "c.weight": codes.clone(), "d.weight": codes.clone()}, file, metadata)
    with pytest.raises(InputError, match=r"2 weights lack their scale: `c\.weight`, `d\.weight`"):
        read_weights(file)
    save_file({k: v for k, v in tensors.items() if k[-6:] not in ("weight", "_scale")
               or k == "a.b.weight"}, file, metadata)  # fmt: skip
    with pytest.raises(InputError, match=r"1 weight lacks its scale: `a\.b\.weight`"):
        read_weights(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"a.b.scale_weight": torch.ones(4, 1)}, r"a scale of F32\[4, 1\], not one number"),
        ({"a.b.scale_weight": torch.tensor(3)}, r"a scale of I64\[\], not one number"),
        ({"a.b.weight": torch.ones(4, 4).to(torch.int8)}, "I8 weights with a scale"),
        ({"z.scale_weight": torch.ones(())}, r"`z\.scale_weight` is the scale of `z\.weight`"),
    ],
)
def test_a_scale_of_another_kind_is_refused(change: Tensors, problem: str, file: Path) -> None:
    tensors, _ = old(torch.ones(4, 4).to(E4M3), torch.ones(()))
    save_file({**tensors, **change}, file)
    with pytest.raises(InputError, match=problem):
        read_weights(file)


@pytest.mark.parametrize("name", ["int8_tensorwise", "nvfp4", "mxfp8", "convrot_w4a4"])
@pytest.mark.parametrize("spelling", [new, in_header])
def test_another_format_of_comfyui_is_refused_by_name(
    name: str, spelling: Callable[..., tuple[Tensors, dict[str, str]]], file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(FORMAT, "format", name)
    tensors, metadata = spelling(torch.ones(4, 4).to(torch.int8), torch.ones(()))
    save_file(tensors, file, metadata)
    with pytest.raises(InputError, match=rf"quantised as {name} \(`a\.b`\)") as error:
        read_weights(file)
    assert "original" in str(error.value.hint)


def test_a_setting_that_changes_values_is_refused_by_name(file: Path) -> None:
    tensors, _ = new(torch.ones(4, 4).to(E4M3), torch.ones(()))
    tensors["a.b.comfy_quant"] = note({**FORMAT, "convrot": True})
    save_file(tensors, file)
    with pytest.raises(InputError, match="quantised as convrot"):
        read_weights(file)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.weight.absmax", "bitsandbytes"),
        ("a.weight.quant_map", "bitsandbytes"),
        ("a.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("a.SCB", "bitsandbytes"),
        ("a.qweight", "GPTQ"),
        ("a.weight._data", "optimum-quanto"),
    ],
)
def test_quantisers_are_refused_by_name(name: str, kind: str, file: Path) -> None:
    save_file({"a.weight": torch.zeros(4, dtype=torch.uint8), name: torch.ones(4)}, file)
    with pytest.raises(InputError, match=f"quantised by {kind}"):
        read_weights(file)


@pytest.mark.parametrize(
    "metadata",
    ["", "[]", "{", '{"layers": 3}', '{"layers": {"a.b": 3}}', '{"layers": {"a.b": {}}}',
     '{"layers": {"zz": {"format": "float8_e4m3fn"}}}', '{"layers": {"a.b": {"format": [1]}}}'],
)  # fmt: skip
def test_notes_of_another_kind_are_errors(metadata: str, file: Path) -> None:
    tensors, _ = in_header(torch.ones(4, 4).to(E4M3), torch.ones(()))
    save_file(tensors, file, {"_quantization_metadata": metadata})
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_weights(file)
    whole = {**tensors, "a.b.comfy_quant": torch.tensor(list(metadata.encode()), dtype=torch.uint8)}
    save_file(whole, file)
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_weights(file)
