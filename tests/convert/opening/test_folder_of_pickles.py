"""Folders whose weights are pickles: the same tensors, the same reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from verify.reference.reference import Reference

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
         "text_encoder": "pytorch_model", "text_encoder_2": "pytorch_model"}  # fmt: skip


def to_pickles(source: Path, folder: Path, shards: int = 1, **options: bool) -> Path:
    """A copy of a checkpoint whose weights are `.bin` files."""
    shutil.copytree(source, folder)
    for part, stem in STEMS.items():
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        file.unlink()
        names = [f"{stem}-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
        names = names if shards > 1 else [f"{stem}.bin"]
        weight_map = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
        for name in names:
            held = {k: v for k, v in tensors.items() if weight_map[k] == name}
            torch.save(held, folder / part / name, **options)  # type: ignore[arg-type]
        if shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / part / f"{stem}.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("form", ["zip", "legacy", "shards"])
def test_a_folder_of_pickles_is_the_same_checkpoint(
    form: str, base: Checkpoint, tmp_path: Path
) -> None:
    shards = 2 if form == "shards" else 1
    options = {"_use_new_zipfile_serialization": form != "legacy"}
    found = open_checkpoint(to_pickles(base.path, tmp_path / "base", shards, **options))
    assert any(name.endswith(".bin") for name in found.files)
    for component in base.components:
        expected, tensors = base.component_tensors(component), found.component_tensors(component)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
            one, other = tensor.read(np.float16), expected[name].read(np.float16)
            np.testing.assert_array_equal(one, other)
    for component in ("unet", "text_encoder_2"):
        with Reference(found, component) as one, Reference(base, component) as other:
            expected_values = other.parameters()
            for name, value in one.parameters().items():
                assert torch.equal(value, expected_values[name]), name


def test_a_file_under_the_name_of_another_format_is_refused(
    base: Checkpoint, tmp_path: Path
) -> None:
    folder = to_pickles(base.path, tmp_path / "base")
    (file,) = (folder / "vae").glob("*.bin")
    file.rename(file.with_suffix(".safetensors"))
    with pytest.raises(InputError, match="is a zip pickle under the name of another format"):
        open_checkpoint(folder)
    (other,) = (base.path / "vae").glob("*.safetensors")
    shutil.copy(other, file)
    file.with_suffix(".safetensors").unlink()
    with pytest.raises(InputError, match="is a safetensors under the name of another format"):
        open_checkpoint(folder)
