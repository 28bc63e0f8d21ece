"""LoRA files as they are found: spellings of tensors, settings, and what is no LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.errors import InputError
from convert.lora.read import LoraFile, read_lora
from convert.lora.suffixes import REFUSED, ROLES, split
from tests.support.loras import RANK, tensors_of, write_lora


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"


def one(file: Path, tensors: Mapping[str, torch.Tensor], **more: Any) -> LoraFile:
    return read_lora(write_lora(file, {"x": dict(tensors)}, **more))


def problem(file: Path, tensors: Mapping[str, torch.Tensor], **more: Any) -> str:
    with pytest.raises(InputError) as error:
        one(file, tensors, **more)
    return error.value.problem


LORA = tensors_of("LoRA", (8, 12))
UP_AND_DOWN = {suffix: value for suffix, value in LORA.items() if suffix != ".alpha"}


@pytest.mark.parametrize("suffix", [*ROLES, *REFUSED])
def test_a_key_is_a_name_and_the_longest_suffix(suffix: str) -> None:
    assert split(f"unet.to_q{suffix}") == ("unet.to_q", suffix)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor([2.0])]
)
def test_alpha_is_a_number_of_any_dtype(file: Path, alpha: torch.Tensor) -> None:
    file.parent.mkdir(exist_ok=True)
    save_file({f"x{s}": v for s, v in {**UP_AND_DOWN, ".alpha": alpha}.items()}, file)
    (adapter,) = read_lora(file).adapters
    assert adapter.scale == 2 / RANK


@pytest.mark.parametrize("alpha", [None, 0.0, float(RANK)])
def test_without_alpha_or_with_0_it_is_the_rank(file: Path, alpha: float | None) -> None:
    more = {} if alpha is None else {".alpha": torch.tensor(alpha)}
    (adapter,) = one(file, {**UP_AND_DOWN, **more}).adapters
    assert adapter.scale == 1


def test_an_alpha_that_nobody_reads_may_overflow(file: Path) -> None:
    tensors = tensors_of("LoKr, whole ⊗ whole", (8, 12))  # 1e10, in float16
    (adapter,) = one(file, tensors).adapters
    assert adapter.scale == 1


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [('{"algo": "glora", "rs_lora": "True"}', 2.5 / RANK**0.5), ('{"algo": "glora"}', 2.5 / RANK)],
)
def test_gloras_alpha_is_saved_without_rs_loras_root(
    file: Path, arguments: str, scale: float
) -> None:
    metadata = {"ss_network_args": arguments}
    (adapter,) = one(file, tensors_of("GLoRA", (8, 12)), metadata=metadata).adapters
    assert adapter.scale == scale
    (adapter,) = one(file, LORA, metadata=metadata).adapters
    assert adapter.scale == 2.5 / RANK


def test_a_bias_of_peft_is_scaled_as_its_weight(file: Path) -> None:
    weight, bias = one(file, {**LORA, ".lora_B.bias": torch.ones(8)}).adapters
    assert (weight.kind, bias.kind) == ("lora", "bias")
    assert bias.scale == weight.scale == 2.5 / RANK


def peft(file: Path, settings: object, name: str = "unet.mid_block.proj_in") -> float:
    pair = dict(zip((".lora_B.weight", ".lora_A.weight"), UP_AND_DOWN.values(), strict=True))
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    (adapter,) = read_lora(write_lora(file, {name: pair}, metadata)).adapters
    return adapter.scale


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.lora_alpha": 2, "unet.r": RANK}, 2 / RANK),
        ({"unet.lora_alpha": 2.0, "unet.use_rslora": True}, 2 / RANK**0.5),
        ({"text_encoder.lora_alpha": 2, "text_encoder.use_rslora": True}, 1),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.proj_in": 3}}, 3 / RANK),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"proj_in": 3}}, 3 / RANK),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"^mid.*in": 3}}, 3 / RANK),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"oj_in": 3}}, 2 / RANK),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {}, "unet.target": ["x"]}, 2 / RANK),
    ],
)
def test_pefts_settings_in_the_header_count(file: Path, settings: object, scale: float) -> None:
    assert peft(file, settings) == scale


@pytest.mark.parametrize("beside", ["adapter_model.safetensors", "lora.safetensors"])
def test_pefts_settings_beside_its_own_file_count(tmp_path: Path, beside: str) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "alpha_pattern": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pair = {".lora_A.weight": torch.ones(RANK, 12), ".lora_B.weight": torch.ones(8, RANK)}
    file = write_lora(tmp_path / beside, {"base_model.model.mid_block.proj_in": pair})
    (adapter,) = read_lora(file).adapters
    assert adapter.scale == (2 if beside.startswith("adapter_model") else 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "holds a list where an object is expected"),
        ({"unet.lora_alpha": "2"}, "`lora_alpha` is"),
        ({"unet.alpha_pattern": {"(a+)+$": 2}}, r"has the pattern \"\(a\+\)\+\$\""),
        ({"unet.use_dora": True}, "lacks `lora_magnitude_vector`, although `use_dora` is true"),
    ],
)
def test_settings_that_cannot_be_read_are_named(file: Path, settings: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        peft(file, settings)


def test_tensors_that_are_missing_are_named(file: Path) -> None:
    up = {".lora_up.weight": UP_AND_DOWN[".lora_up.weight"]}
    assert problem(file, {**up, ".alpha": torch.tensor(1.0)}) == (
        "module `x` lacks `down`, which a LoRA has; it has `x.alpha`, `x.lora_up.weight`"
    )
    loha = tensors_of("LoHa, Tucker", (8, 12, 3, 3))
    assert "lacks `hada_t2`" in problem(file, {s: v for s, v in loha.items() if s != ".hada_t2"})
    lonely = {".alpha": torch.tensor(1.0), ".dora_scale": torch.ones(8, 1)}
    assert "no one kind of LoRA" in problem(file, lonely)


def test_a_module_of_two_kinds_is_refused(file: Path) -> None:
    assert "no one kind" in problem(file, {**LORA, **tensors_of("LoHa", (8, 12))})
    assert "no one kind" in problem(file, {**LORA, ".diff": torch.ones(8, 12)})
    both = {**LORA, ".lora_A.weight": torch.ones(4, 12)}
    assert problem(file, both).startswith("has `x.lora_")
    assert "bias of module `x` in two ways" in problem(
        file, {**LORA, ".diff_b": torch.ones(8), ".b_norm": torch.ones(8)}
    )


@pytest.mark.parametrize("suffix", list(REFUSED))
def test_kinds_that_cannot_be_merged_are_named(file: Path, suffix: str) -> None:
    assert REFUSED[suffix] in problem(file, {**LORA, suffix: torch.ones(4)})


@pytest.mark.parametrize("axes", [1, 2, 5])
def test_rotations_of_other_axes_are_refused(file: Path, axes: int) -> None:
    assert f"has {axes} axes" in problem(file, {".oft_blocks": torch.ones((2,) * axes)})


@pytest.mark.parametrize("suffix", [".lora_up.weight", ".alpha"])
def test_an_empty_tensor_is_named(file: Path, suffix: str) -> None:
    assert "is empty" in problem(file, {**LORA, suffix: torch.ones(0)})


def test_numbers_and_tensors_are_told_apart(file: Path) -> None:
    assert "is not a single number" in problem(file, {**LORA, ".alpha": torch.ones(2)})
    assert "is a single number" in problem(file, {**LORA, ".lora_up.weight": torch.tensor(1.0)})


def test_a_leftover_key_is_named(file: Path) -> None:
    assert problem(file, {**LORA, ".else": torch.ones(2)}) == (
        "tensor `x.else` is of no kind of LoRA that we know"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias"], "checkpoint"),
        (
            ["conv_in.weight"],
            "is a checkpoint, not a LoRA: it has .* `conv_in.weight`",
        ),
        (["clip_g", "clip_l"], "is an embedding"),
        (["emb_params"], "is an embedding"),
        (["lora_controlnet", "conv_in.up"], "is a Control-LoRA"),
        (["something"], "holds no LoRA"),
    ],
)
def test_what_is_no_lora_is_named(file: Path, keys: list[str], message: str) -> None:
    save_file({key: torch.ones(2, 2) for key in keys}, file)
    with pytest.raises(InputError, match=message):
        read_lora(file)


def test_embeddings_inside_are_told_once(file: Path) -> None:
    tensors = {f"x{s}": v for s, v in LORA.items()}
    tensors |= {f"bundle_emb.style.{part}": torch.ones(2, 8) for part in ("clip_l", "clip_g")}
    save_file(tensors, file)
    assert read_lora(file).ignored == ("embedding `style` inside the file",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_as_its_safetensors(file: Path, zipped: bool) -> None:
    plain = one(file, LORA).adapters[0]
    pickled = file.with_suffix(".pt")
    tensors = {f"x{suffix}": value.half() for suffix, value in LORA.items()}
    torch.save(tensors, pickled, _use_new_zipfile_serialization=zipped)
    (adapter,) = read_lora(pickled).adapters
    assert (adapter.kind, adapter.scale) == (plain.kind, plain.scale)
    for role, tensor in plain.tensors.items():
        np.testing.assert_array_equal(
            adapter.tensors[role].read(np.float32), tensor.read(np.float32)
        )
