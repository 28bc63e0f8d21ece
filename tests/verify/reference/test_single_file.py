"""The reference of a single file is the folder's, and is read without our table of names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import convert.checkpoint.keys
from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from tests.support.single_files import FileLayout, Weights, ldm_weights, single_file
from verify.reference.reference import Reference
from verify.reference.single_file import how_loaded


def require_same_weights(found: Checkpoint, wanted: Checkpoint) -> None:
    for component in ("text_encoder", "text_encoder_2", "unet", "vae_decoder"):
        if component not in wanted.components or found.part(component).single is None:
            continue
        with Reference(found, component) as ours, Reference(wanted, component) as theirs:
            weights = theirs.parameters()
            assert ours.parameters().keys() == weights.keys()
            for name, value in ours.parameters().items():
                assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("shape", ["base", "refiner", "no_mid_attention"])
def test_its_weights_are_the_folders(
    tmp_path: Path, shapes: Mapping[str, Path], shape: str
) -> None:
    folder = shapes[shape]
    wanted = open_checkpoint(folder)
    found = open_checkpoint(single_file(tmp_path / "one.safetensors", folder), base=wanted)
    assert "by diffusers' own converters" in how_loaded(found)
    assert not how_loaded(wanted)
    require_same_weights(found, wanted)


@pytest.mark.parametrize("layout", ["bare", "diffusers"])
def test_a_bare_unets_are_too(
    tmp_path: Path, shapes: Mapping[str, Path], base: Checkpoint, layout: FileLayout
) -> None:
    file = single_file(tmp_path / "unet.safetensors", shapes["base"], layout)
    found = open_checkpoint(file, base=base)
    assert how_loaded(found) == "the reference reads unet by diffusers' own converters"
    require_same_weights(found, base)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_so_are_those_of_pickles(
    tmp_path: Path, shapes: Mapping[str, Path], base: Checkpoint, legacy: bool
) -> None:
    held = {"state_dict": ldm_weights(shapes["base"])}
    torch.save(held, tmp_path / "one.ckpt", _use_new_zipfile_serialization=not legacy)
    require_same_weights(open_checkpoint(tmp_path / "one.ckpt", base=base), base)


def test_what_the_libraries_cannot_read_is_our_readers_and_said(
    tmp_path: Path, shapes: Mapping[str, Path], base: Checkpoint
) -> None:
    name = "model.diffusion_model.input_blocks.4.1.proj_in"

    def scaled(weights: Weights) -> None:
        weights[f"{name}.scale_weight"] = torch.tensor(0.5)
        weights[f"{name}.weight"] = weights[f"{name}.weight"].to(torch.float8_e4m3fn)

    file = single_file(tmp_path / "one.safetensors", shapes["base"], change=scaled)
    found = open_checkpoint(file, base=base)
    assert "the values of unet from this tool's reader" in how_loaded(found)
    key = "down_blocks.1.attentions.0.proj_in.weight"
    with Reference(found, "unet") as reference:
        wanted = base.parts["unet"].tensors[key].read(np.float32)
        stored = torch.from_numpy(wanted).to(torch.float8_e4m3fn).float() * 0.5
        assert torch.equal(reference.parameters()[key].float(), stored.float())


def test_a_mistake_in_our_table_does_not_reach_the_reference(
    tmp_path: Path, shapes: Mapping[str, Path], base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = single_file(tmp_path / "one.safetensors", shapes["base"])
    swapped = {**convert.checkpoint.keys._RESNET, "norm1": "out_layers.0", "norm2": "in_layers.0"}
    monkeypatch.setattr(convert.checkpoint.keys, "_RESNET", swapped)
    found = open_checkpoint(file, base=base)
    key = "mid_block.resnets.0.norm1.weight"
    with Reference(found, "unet") as ours, Reference(base, "unet") as theirs:
        assert torch.equal(ours.parameters()[key], theirs.parameters()[key])
    assert found.parts["unet"].tensors[key].name.endswith("out_layers.0.weight")


def test_a_weight_that_is_missing_is_said(
    tmp_path: Path, shapes: Mapping[str, Path], base: Checkpoint
) -> None:
    def incomplete(weights: Weights) -> None:
        del weights["model.diffusion_model.middle_block.0.in_layers.0.bias"]

    file = single_file(tmp_path / "one.safetensors", shapes["base"], change=incomplete)
    found = open_checkpoint(file, base=base)
    with pytest.raises(InputError, match=r"mid_block\.resnets\.0\.norm1\.bias"):
        Reference(found, "unet")
