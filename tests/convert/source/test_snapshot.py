"""Checkpoint folders made of links: followed where they lead somewhere, named where they do not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.source.download import download, parse_source

UNET = "unet/diffusion_pytorch_model.safetensors"


def link_folder(checkpoint: Path, name: str) -> None:
    """As people swap in a repaired VAE."""
    (checkpoint / name).rename(checkpoint.parent / f"my {name}")
    (checkpoint / name).symlink_to(f"../my {name}")


def link_of_links(checkpoint: Path) -> None:
    link_folder(checkpoint, "unet")
    (checkpoint / "unet").rename(checkpoint.parent / "between")
    (checkpoint.parent / "between").unlink()
    (checkpoint.parent / "between").symlink_to("my unet")
    (checkpoint / "unet").symlink_to(checkpoint.parent / "between")


def link_files(checkpoint: Path) -> None:
    """As in the Hub's cache: every file is a link to a blob."""
    blobs = checkpoint.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(p for p in checkpoint.rglob("*") if p.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))


def link_what_nobody_reads(checkpoint: Path) -> None:
    (checkpoint / "unet" / "notes").symlink_to("gone")
    (checkpoint / "unet" / "again").symlink_to("..")
    (checkpoint / "old").symlink_to("/nowhere/at all")
    (checkpoint / "unet/diffusion_pytorch_model.bin").symlink_to("deleted")


LINKED: dict[str, Callable[[Path], Any]] = {
    "a VAE": lambda c: link_folder(c, "vae"),
    "a tokenizer": lambda c: link_folder(c, "tokenizer_2"),
    "the scheduler": lambda c: link_folder(c, "scheduler"),
    "all": lambda c: [link_folder(c, p.name) for p in list(c.iterdir()) if p.is_dir()],
    "links of links": link_of_links,
    "files": link_files,
    "what nobody reads": link_what_nobody_reads,
}


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "at" / "ck"))


@pytest.mark.parametrize("name", LINKED)
def test_a_checkpoint_of_links_is_that_checkpoint(name: str, toy: Path, copy: Path) -> None:
    LINKED[name](copy)
    expected, found = open_checkpoint(toy), open_checkpoint(copy)
    assert found.files.keys() == expected.files.keys()
    assert all(f.read_bytes() == expected.files[n].read_bytes() for n, f in found.files.items())
    assert found.tokenizers == expected.tokenizers
    assert {n: dict(p.config) for n, p in found.parts.items()} == {
        n: dict(p.config) for n, p in expected.parts.items()
    }


@pytest.mark.parametrize("name", LINKED)
def test_its_copy_has_the_files_themselves(
    name: str, toy: Path, copy: Path, tmp_path: Path
) -> None:
    LINKED[name](copy)
    out = download(parse_source(str(copy)), tmp_path / "out").path
    assert not [p for p in out.rglob("*") if p.is_symlink()]
    assert open_checkpoint(out).files.keys() == open_checkpoint(toy).files.keys()


def test_a_link_to_a_whole_checkpoint_is_followed(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(toy)
    assert open_checkpoint(tmp_path / "mine").parts.keys() == open_checkpoint(toy).parts.keys()


def to(place: str, target: str) -> Callable[[Path], None]:
    """Put a link in the place of a file or folder."""

    def change(checkpoint: Path) -> None:
        file = checkpoint / place
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.symlink_to(target)

    return change


@pytest.mark.parametrize(
    ("place", "target", "problem"),
    [
        ("vae", "../gone", r"vae: is a link to \.\./gone, nothing that is there"),
        ("tokenizer", "../gone", r"tokenizer: is a link to \.\./gone, nothing"),
        ("unet", "unet", "unet: is a link to unet, itself"),
        ("vae", ".", r"vae: is a link to \., a folder that holds it"),
        ("vae", "../..", r"vae: is a link to \.\./\.\., a folder that holds it"),
        (UNET, "gone", r"model\.safetensors: is a link to gone, nothing that is there"),
        (UNET, UNET[5:], r"model\.safetensors: is a link to .*, itself"),
        ("vae/config.json", "gone", r"config\.json: is a link to gone, nothing"),
        ("model_index.json", "gone", r"model_index\.json: is a link to gone, nothing"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(
    place: str, target: str, problem: str, copy: Path, tmp_path: Path
) -> None:
    to(place, target)(copy)
    for read in (open_checkpoint, lambda c: download(parse_source(str(c)), tmp_path / "out")):
        with pytest.raises(InputError, match=problem) as error:
            read(copy)
        assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_a_link_to_nothing_is_not_taken_for_a_repo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/sdxl").symlink_to("/gone")
    with pytest.raises(InputError, match="is a link to /gone, nothing that is there"):
        parse_source("models/sdxl")
