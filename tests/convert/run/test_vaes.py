"""Another VAE gives the packages of a folder whose own it is, byte for byte, in every spelling."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convert.opening.door import open_checkpoint
from convert.opening.vae import with_vae
from convert.run.manifest import read as read_manifest
from tests.support.packages import packages
from tests.support.single_files import make_knowable, single_file
from tests.support.vaes import SPELLINGS, WEIGHTS, bare_ldm, folder_alone

VAE = ("vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_knowable(tmp_path_factory.mktemp("own") / "own")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_knowable(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture(scope="module")
def wanted(own: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The packages of a folder in which the other VAE is the checkpoint's own."""
    folder = Path(shutil.copytree(own, tmp_path_factory.mktemp("both") / "both"))
    shutil.rmtree(folder / "vae")
    shutil.copytree(other / "vae", folder / "vae")
    out = tmp_path_factory.mktemp("wanted") / "out"
    return packages(open_checkpoint(folder, name="x"), out, (*VAE, "text_encoder"))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_packages(
    own: Path, other: Path, wanted: dict[str, str], tmp_path: Path, spelling: str
) -> None:
    path = SPELLINGS[spelling](tmp_path, other)
    checkpoint = with_vae(open_checkpoint(own, name="x"), path)
    components = (*VAE, "text_encoder") if spelling == "LDM's names" else VAE
    found = packages(checkpoint, tmp_path / "out", components)
    assert len(found) == 3 * len(components)
    assert found == {name: wanted[name] for name in found}


def test_a_single_file_and_a_vae_give_the_same_and_the_manifest_says_so(
    own: Path, other: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    file = single_file(tmp_path / "one.safetensors", own)
    base = open_checkpoint(own)
    opened = open_checkpoint(file, name="x", base=base, without=("vae",))
    vae = folder_alone(tmp_path, other)
    found = packages(with_vae(opened, vae, base=base), tmp_path / "out", ("vae_decoder",))
    assert found == {name: wanted[name] for name in found}
    manifest = read_manifest(tmp_path / "out" / "x_original_16-bit_64x64")
    assert manifest is not None
    source = manifest["source"]
    assert source["origin"]["parts"]["vae"] == "VAE vae-repo"
    name = f"other-vae/{WEIGHTS}"
    assert source["vae"]["files"] == {name: source["files"][name]}
    assert source["vae"]["name"] == "vae-repo"
    assert "other-vae/config.json" in source["files"]


def test_nothing_is_read_of_the_vae_that_is_replaced(
    own: Path, other: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "damaged"))
    (folder / "vae" / WEIGHTS).write_bytes(b"damaged")
    opened = open_checkpoint(folder, name="x", without=("vae",))
    found = packages(with_vae(opened, bare_ldm(tmp_path, other)), tmp_path / "out", VAE)
    assert found == {name: wanted[name] for name in found}
