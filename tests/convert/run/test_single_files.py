"""A single file's packages are those of the folder with the same weights, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.manifest import read as read_manifest
from convert.run.run import run
from convert.source.download import Snapshot
from tests.support.checkpoints import make_checkpoint
from tests.support.single_files import FileLayout, Weights, ldm_weights, single_file

SHAPE_NAMES = ("base", "refiner", "inpainting", "no_mid_attention")
WITH_UNET = ("fp32", "bf16", "legacy ckpt", "bare", "diffusers")  # the others' differ in text alone


def packages(
    checkpoint: Checkpoint, out: Path, components: tuple[str, ...] = (), bits: str = "16"
) -> dict[str, str]:
    """The digests of what is in the packages of an artifact, by path."""
    text = f"""
    name = "x"
    source.path = "x"
    matrix = {{ attention = ["original"], resolution = ["64x64"], bits = ["{bits}"] }}
    """
    plan = make_plan(parse_recipe(text, where="test"), checkpoint, components=components)
    (result,) = run(plan, Snapshot(checkpoint.path, None, None, ()), out, jobs=1)
    files = sorted(result.path.glob("*.mlpackage/**/*"))
    return {
        str(file.relative_to(result.path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def opened(file: Path, base: Path) -> Checkpoint:
    return open_checkpoint(file, name="x", base=open_checkpoint(base))


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_every_shape_gives_the_same_packages(
    tmp_path: Path, shapes: Mapping[str, Path], shape: str
) -> None:
    folder = shapes[shape]
    file = single_file(tmp_path / "one.safetensors", folder)
    bits = "int8" if shape == "base" else "16"
    wanted = packages(open_checkpoint(folder, name="x"), tmp_path / "a", bits=bits)
    found = packages(opened(file, folder), tmp_path / "b", bits=bits)
    assert len([name for name in wanted if name.endswith("weight.bin")]) >= 4
    assert found == wanted


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose float16 weights bfloat16 holds exactly."""
    folder = make_checkpoint(tmp_path_factory.mktemp("made") / "exact")
    for file in folder.rglob("*.safetensors"):
        weights = {k: v.bfloat16().half() for k, v in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def wanted(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    return packages(open_checkpoint(exact, name="x"), out, ("text_encoder_2", "unet"))


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
        prefix = "conditioner.embedders.1.model."
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
    made = ("text_encoder_2", "unet") if write[0] in WITH_UNET else ("text_encoder_2",)
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
