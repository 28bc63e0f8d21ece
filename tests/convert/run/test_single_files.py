"""A single file's packages are those of the folder with the same weights, byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.files import cache
from convert.opening.door import open_checkpoint
from convert.run.manifest import read as read_manifest
from tests.support.packages import packages
from tests.support.single_files import FileLayout, Weights, ldm_weights, single_file, write_file

SHAPE_NAMES = ("base", "refiner", "inpainting", "no_mid_attention")
BOTH = ("text_encoder_2", "unet")
# Where each layout is most its own; of the base, both networks where both are in the file.
OF_TEXT = ("bf16", "ckpt", "legacy ckpt", "comfy")
WITH_BOTH = ("fp32", "bf16", "legacy ckpt")


def opened(file: Path, base: Path) -> Checkpoint:
    return open_checkpoint(file, name="x", base=open_checkpoint(base))


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_every_shape_gives_the_same_packages(
    tmp_path: Path, shapes: Mapping[str, Path], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shapes[shape]
    file = single_file(tmp_path / "one.safetensors", folder)
    bits = "int8" if shape == "base" else "16"
    wanted = packages(open_checkpoint(folder, name="x"), tmp_path / "a", bits=bits)
    hashed: list[Path] = []
    original = cache.digest_file

    def counted(path: Path, *more: Any) -> str:
        hashed.append(path)
        return original(path, *more)

    monkeypatch.setattr(cache, "digest_file", counted)
    found = packages(opened(file, folder), tmp_path / "b", bits=bits)
    assert hashed.count(file) == 1  # for all of the networks in it
    assert len([name for name in wanted if name.endswith("weight.bin")]) >= 4
    assert found == wanted


def rounded(
    source: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Path:
    """A copy of a checkpoint with other values; `change` is given each tensor's name."""
    shutil.copytree(source, folder)
    for file in folder.rglob("*.safetensors"):
        weights = {name: change(name, value) for name, value in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=SHAPE_NAMES)
def exact(
    request: pytest.FixtureRequest,
    shapes: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint of each shape whose float16 weights bfloat16 holds exactly."""
    folder = tmp_path_factory.mktemp(request.param) / "exact"
    return rounded(shapes[request.param], folder, lambda _, value: value.bfloat16().half())


@pytest.fixture(scope="module")
def wanted(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return packages(open_checkpoint(exact, name="x"), tmp_path_factory.mktemp("wanted"), BOTH)


def whole(dtype: torch.dtype) -> Callable[[Path, Path], Path]:
    return lambda folder, exact: single_file(folder / "one.safetensors", exact, dtype=dtype)


def bare(layout: FileLayout) -> Callable[[Path, Path], Path]:
    return lambda folder, exact: single_file(folder / "unet.safetensors", exact, layout)


def pickled(name: str, *, legacy: bool) -> Callable[[Path, Path], Path]:
    def write(folder: Path, exact: Path) -> Path:
        held: dict[str, Weights | int] = {"state_dict": ldm_weights(exact), "global_step": 7}
        torch.save(held, folder / name, _use_new_zipfile_serialization=not legacy)
        return folder / name

    return write


def comfys(folder: Path, exact: Path) -> Path:
    """Text encoder 2's projection as ComfyUI spells it, and buffers that shape nothing."""

    def change(weights: Weights) -> None:
        (own,) = (name for name in weights if name.endswith(".text_projection"))
        prefix = own.removesuffix("text_projection")
        weights[f"{prefix}text_projection.weight"] = weights.pop(f"{prefix}text_projection").T
        weights[f"{prefix}logit_scale"] = torch.tensor(4.6)
        weights["alphas_cumprod"] = torch.zeros(1000)

    return single_file(folder / "one.safetensors", exact, change=change)


@pytest.mark.parametrize(
    "write",
    {
        "fp32": whole(torch.float32),
        "bf16": whole(torch.bfloat16),
        "ckpt": pickled("one.ckpt", legacy=False),
        "legacy ckpt": pickled("one.ckpt", legacy=True),
        "comfy": comfys,
        "bare": bare("bare"),
        "diffusers": bare("diffusers"),
    }.items(),
    ids=lambda item: item[0],
)
def test_every_layout_gives_the_same_packages(
    tmp_path: Path,
    exact: Path,
    wanted: dict[str, str],
    write: tuple[str, Callable[[Path, Path], Path]],
) -> None:
    file = write[1](tmp_path, exact)
    checkpoint = opened(file, exact)
    made = ("text_encoder_2",) if write[0] in OF_TEXT else ("unet",)
    if exact.parent.name.startswith("base") and write[0] in WITH_BOTH:
        made = BOTH
    found = packages(checkpoint, tmp_path / "out", made)
    assert len(found) == 3 * len(made)
    assert found == {name: wanted[name] for name in found}
    manifest = read_manifest(tmp_path / "out" / "x_original_16-bit_64x64")
    assert manifest is not None
    source = manifest["source"]
    assert source["files"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source["base"] == {"name": "exact", "repo": None, "commit": None}
    assert source["origin"]["parts"]["unet"] == file.name
    assert source["files"]["unet/config.json"]


# ---- 8-bit floats ----

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
UNET = "model.diffusion_model."
SCALE = 0.37


def is_scaled(name: str) -> bool:
    return ".attn2." in name and name.endswith(".weight")


def eight_bits(name: str, value: torch.Tensor) -> torch.Tensor:
    """A weight that an 8-bit float holds: of cross-attentions a scaled one, else either kind."""
    if value.ndim < 2:
        return value
    if is_scaled(name):
        return ((value / SCALE).to(E4M3).float() * SCALE).half()
    return value.to(E4M3).to(E5M2).half()


@pytest.fixture(scope="module")
def eighths(shapes: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of decoded values, in float16."""
    return rounded(shapes["base"], tmp_path_factory.mktemp("made") / "eighths", eight_bits)


@pytest.fixture(scope="module")
def decoded(eighths: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return packages(open_checkpoint(eighths, name="x"), tmp_path_factory.mktemp("decoded"), BOTH)


def plain(path: Path, folder: Path, dtype: torch.dtype) -> Path:
    """All weights in 8 bits but those that need a scale; norms and biases are left in float16."""
    weights = ldm_weights(folder)
    for name, value in weights.items():
        if value.ndim > 1 and not is_scaled(name) and not name.startswith("first_stage_model."):
            weights[name] = value.to(dtype)
            assert torch.equal(weights[name].half(), value)
    return write_file(path, weights)


def scaled(path: Path, folder: Path, spelling: str) -> Path:
    """The cross-attentions' weights in 8 bits with a scale, in ComfyUI's old or new spelling."""
    weights, layers = ldm_weights(folder), {}
    scale, ones = torch.tensor(SCALE), torch.ones(())
    about = {"format": "float8_e4m3fn"}
    note = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    for name in [n for n in weights if is_scaled(n)]:
        weights[name] = (weights[name].float() / SCALE).to(E4M3)
        layer = name.removesuffix(".weight")
        layers[layer] = about
        if spelling == "scale_weight":
            weights |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": ones}
        else:
            weights |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": ones}
        if spelling == "comfy_quant":
            weights[f"{layer}.comfy_quant"] = note
    if spelling == "scale_weight":
        weights[f"{UNET}scaled_fp8"] = torch.zeros(0, dtype=E4M3)
    told = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return write_file(path, weights, told if spelling == "header" else None)


@pytest.mark.parametrize(
    ("write", "how", "made"),
    [
        (plain, E4M3, BOTH),
        (plain, E5M2, BOTH),
        (scaled, "scale_weight", ("unet",)),
        (scaled, "comfy_quant", ("unet",)),
        (scaled, "header", ("unet",)),
    ],
    ids=["E4M3", "E5M2", "scale_weight", "comfy_quant", "header"],
)
def test_8_bit_floats_give_the_packages_of_their_decoded_values(
    tmp_path: Path,
    eighths: Path,
    decoded: dict[str, str],
    write: Callable[[Path, Path, Any], Path],
    how: object,
    made: tuple[str, ...],
) -> None:
    checkpoint = opened(write(tmp_path / "one.safetensors", eighths, how), eighths)
    dtypes = checkpoint.origin.dtypes["unet"] if checkpoint.origin else {}
    kind = "F8_E5M2" if how is E5M2 else "F8_E4M3"
    assert dtypes.keys() == {"F16", kind if write is plain else f"{kind}, scaled"}
    found = packages(checkpoint, tmp_path / "out", made)
    assert len(found) == 3 * len(made)
    assert found == {name: decoded[name] for name in found}


@pytest.mark.parametrize(("component", "bits"), [("unet", "6"), ("text_encoder_2", "4")])
def test_palettes_are_of_the_values_whatever_they_are_stored_as(
    tmp_path: Path, eighths: Path, component: str, bits: str
) -> None:
    made = (component,)
    wanted = packages(open_checkpoint(eighths, name="x"), tmp_path / "a", made, bits=bits)
    file = scaled(tmp_path / "one.safetensors", eighths, "scale_weight")
    found = packages(opened(file, eighths), tmp_path / "b", made, bits=bits)
    assert len(found) == 3
    assert found == wanted
