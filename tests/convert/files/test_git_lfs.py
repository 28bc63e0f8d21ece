"""Pointer files of Git LFS are called that wherever a file is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.files.git_lfs import is_pointer
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import MODEL
from convert.recipe.recipe import load_recipe
from convert.weights.allocation import read_allocation
from verify.artifact.inspect import inspect
from verify.golden import read_golden, write_golden
from verify.reference.recording import Recording

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1\n"

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json", "tokenizer_2/merges.txt",
    ],
)  # fmt: skip
def test_in_a_checkpoint(name: str, base: Checkpoint, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base.path, tmp_path / "ck"))
    (copy / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=f"{name}: is a Git LFS pointer") as error:
        open_checkpoint(copy)
    assert "git lfs pull" in str(error.value.hint)


@pytest.mark.parametrize("read", [read_allocation, load_recipe])
def test_in_files_by_themselves(read: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(POINTER)
    with pytest.raises(InputError, match="is a Git LFS pointer"):
        read(file)


@pytest.mark.parametrize("name", [MODEL, "Manifest.json"])
def test_in_a_package(name: str, artifact: Path) -> None:
    file = artifact / "Unet.mlpackage" / name
    file.unlink()
    file.write_bytes(POINTER)
    with pytest.raises(InputError, match="is a Git LFS pointer") as error:
        inspect(artifact)
    assert error.value.where == str(file)


@pytest.mark.parametrize("name", ["manifest.json", "components.safetensors", "checkpoint/"])
def test_in_a_golden_bundle(
    name: str, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    bundle = tmp_path / "golden"
    write_golden(bundle, base, recording, ())
    file = next(p for p in sorted(bundle.rglob("*")) if str(p.relative_to(bundle)).startswith(name))
    file = file if file.is_file() else file / "model_index.json"
    file.write_bytes(POINTER)
    with pytest.raises(InputError, match="is a Git LFS pointer") as error:
        read_golden(bundle)
    assert error.value.where == str(file)


def test_a_picture_to_begin_with(artifact: Path, tmp_path: Path, command: Call) -> None:
    (tmp_path / "a.png").write_bytes(POINTER)
    out = tmp_path / "out.png"
    code, _, said = command(
        "generate", artifact, "a horse", "--out", out, "--image", tmp_path / "a.png"
    )
    assert code == 2
    assert "a.png: is a Git LFS pointer" in said
    assert not out.exists()


def test_a_text_about_pointers_is_none() -> None:
    assert is_pointer(POINTER)
    assert not is_pointer(b"A pointer begins with version https://git-lfs.github.com/spec/v1")
