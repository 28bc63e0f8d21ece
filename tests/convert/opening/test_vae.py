"""Another VAE in place of a checkpoint's own, from whatever people have it in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.checkpoint.small_files import small_files
from convert.errors import InputError
from convert.files.disk import digest_file
from convert.known import vaes
from convert.known.vaes import KNOWN, KnownVae
from convert.opening.door import open_checkpoint
from convert.opening.vae import holds_vae_alone, open_vae, with_vae
from convert.plan.notices import notices
from tests.support.checkpoints import make_checkpoint, write_json
from tests.support.single_files import KNOWABLE, make_knowable, single_file, write_file
from tests.support.vaes import (
    SPELLINGS,
    WEIGHTS,
    bare_diffusers,
    bare_ldm,
    diffusers_weights,
    edit_vae_config,
    folder_alone,
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose VAE another takes the place of."""
    return make_knowable(tmp_path_factory.mktemp("own") / "own")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the other VAE is from."""
    return make_knowable(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_vae_is_the_same_vae(
    own: Path, other: Path, tmp_path: Path, spelling: str
) -> None:
    path = SPELLINGS[spelling](tmp_path, other)
    checkpoint = with_vae(open_checkpoint(own), path)
    wanted = open_checkpoint(other).parts["vae"].tensors
    found = checkpoint.parts["vae"].tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert np.array_equal(found[name].read(np.float16), tensor.read(np.float16)), name
    assert checkpoint.vae == open_checkpoint(other).vae
    assert list(checkpoint.parts) == list(open_checkpoint(own).parts)
    assert not any(own / "vae" in file.parents for file in checkpoint.files.values())
    assert checkpoint.other_vae is not None
    read = {checkpoint.files[name] for name in checkpoint.other_vae.files}
    assert read == checkpoint.parts["vae"].weight_files
    assert "vae/config.json" in small_files(checkpoint)
    alone = spelling not in ("a whole file", "a whole folder")
    assert holds_vae_alone(path) == alone


def test_a_source_without_a_vae_needs_neither_its_own_nor_a_base(
    own: Path, other: Path, released: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "folder"))
    shutil.rmtree(folder / "vae")
    with pytest.raises(InputError, match="vae/ has no complete weights"):
        open_checkpoint(folder)
    vae = bare_ldm(tmp_path, other)
    found = with_vae(open_checkpoint(folder, without=("vae",)), vae)
    assert found.components == open_checkpoint(own).components

    held = {k: v for k, v in load_file(released).items() if not k.startswith("first_stage_model.")}
    lacking = write_file(tmp_path / "lacking.safetensors", held)
    with pytest.raises(InputError, match="lacks vae"):
        open_checkpoint(lacking)
    found = with_vae(open_checkpoint(lacking, without=("vae",)), vae)
    assert found.origin is not None
    assert found.origin.base is None


def test_a_files_own_vae_is_said_not_to_be_used(own: Path, other: Path, tmp_path: Path) -> None:
    file = single_file(tmp_path / "one.safetensors", own)
    base = open_checkpoint(own)
    opened = open_checkpoint(file, base=base, without=("vae",))
    found = with_vae(opened, bare_ldm(tmp_path, other), base=base)
    assert found.origin is not None
    assert found.origin.parts["vae"] == "VAE vae.safetensors"
    assert found.origin.parts["unet"] == "one.safetensors"
    (names,) = [n for why, n in found.origin.ignored.items() if "takes its place" in why]
    assert all(name.startswith("first_stage_model.") for name in names)
    assert found.files["one.safetensors"] == file
    assert not any("vae/" in name for name in found.files if not name.startswith("other-vae/"))


def test_a_vae_from_a_base_leaves_with_its_files(own: Path, other: Path, tmp_path: Path) -> None:
    unet = single_file(tmp_path / "unet.safetensors", own, "bare")
    before = open_checkpoint(unet, base=open_checkpoint(own))
    assert any(name.startswith("base/vae/") for name in before.files)
    after = with_vae(before, bare_ldm(tmp_path, other))
    assert not any(name.startswith("base/vae/") for name in after.files)
    assert [n for n in before.files if "text" in n] == [n for n in after.files if "text" in n]


def test_what_shapes_do_not_tell_is_that_of_the_vae_it_replaces(
    shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    own = shapes["base"]  # eight groups in its norms, which no file says
    vae = bare_diffusers(tmp_path, own)
    with pytest.raises(InputError, match="how many groups"):
        open_vae(vae)
    for checkpoint in (open_checkpoint(own), open_checkpoint(own, without=("vae",))):
        assert with_vae(checkpoint, vae).vae.groups == 8


def test_the_latents_of_a_bare_file_are_scaled_as_sdxls(other: Path, tmp_path: Path) -> None:
    own = make_knowable(tmp_path / "own", vae={"scaling_factor": 0.5, "shift_factor": 0.1})
    found = with_vae(open_checkpoint(own), bare_ldm(tmp_path, other))
    assert found.vae.scaling.is_standard


# ---- whose it is ----


def test_a_file_that_says_nothing_is_warned_of(own: Path, other: Path, tmp_path: Path) -> None:
    unknown = with_vae(open_checkpoint(own), bare_ldm(tmp_path, other))
    (notice,) = notices(unknown, ["vae_decoder"])
    assert (notice.severity, notice.topic) == ("warning", "other vae")
    assert "nothing says that vae.safetensors is a VAE of SDXL" in notice.problem
    for path in (other, folder_alone(tmp_path, other), single_file(tmp_path / "one.ckpt", other)):
        assert not notices(with_vae(open_checkpoint(own), path), ["vae_decoder"])
    named = write_file(
        tmp_path / "named.safetensors",
        diffusers_weights(other),
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"},
    )
    assert not notices(with_vae(open_checkpoint(own), named), ["vae_decoder"])


def test_a_known_vae_is_named_by_its_digest(
    own: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bare_ldm(tmp_path, other)
    monkeypatch.setattr(vaes, "SIZES", frozenset({path.stat().st_size}))
    fix = KNOWN["235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1"]
    monkeypatch.setattr(vaes, "KNOWN", {digest_file(path): fix})
    found = with_vae(open_checkpoint(own), path)
    assert found.other_vae is not None
    assert found.other_vae.known == "madebyollin/sdxl-vae-fp16-fix"
    assert found.other_vae.license == "mit"
    assert not notices(found, ["vae_decoder"])


def test_a_digest_that_is_known_already_is_not_computed_again(other: Path, tmp_path: Path) -> None:
    """Of a Hub repo, whose files are headers in front of holes when a plan is made."""
    path = bare_ldm(tmp_path, other)
    digest = "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75"
    with pytest.raises(InputError, match="Stable Diffusion 1's VAE, by its SHA-256"):
        open_vae(path, digests={path: digest})


def sd_1_by_digest(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = bare_ldm(tmp_path, other)
    known = {digest_file(path): KnownVae("someone/vae", "Stable Diffusion 1", "float16")}
    monkeypatch.setattr(vaes, "SIZES", frozenset({path.stat().st_size}))
    monkeypatch.setattr(vaes, "KNOWN", known)
    return path


def said(**changes: object) -> Callable[[Path, Path, pytest.MonkeyPatch], Path]:
    return lambda tmp_path, other, _: edit_vae_config(folder_alone(tmp_path, other), **changes)


def with_weights(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path, Path, pytest.MonkeyPatch], Path]:
    def write(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
        return write_file(tmp_path / "vae.safetensors", change(diffusers_weights(other)))

    return write


def of_metadata(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
    said = {"modelspec.architecture": "stable-diffusion-v1/vae"}
    return write_file(tmp_path / "vae.safetensors", diffusers_weights(other), said)


def of_channels(tmp_path: Path, _: Path, __: pytest.MonkeyPatch) -> Path:
    made = make_checkpoint(
        tmp_path / "wide",
        unet={"in_channels": 16, "out_channels": 16},
        vae={**KNOWABLE["vae"], "latent_channels": 16},
    )
    return bare_diffusers(tmp_path, made)


def sd_1_pipeline(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(other, tmp_path / "sd1"))
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder


def taesd(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"1.weight": torch.zeros(64, 4, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}


def taesd_of_diffusers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {f"decoder.layers.{name}": value for name, value in taesd(weights).items()}
    return {**found, "encoder.layers.1.conv.0.weight": torch.zeros(64, 64, 3, 3)}


def unet_alone(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
    return single_file(tmp_path / "unet.safetensors", other, "prefixed")


def two_files(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
    (tmp_path / "several").mkdir()
    for name in "ab":
        bare_ldm(tmp_path, other).rename(tmp_path / "several" / f"{name}.safetensors")
    return tmp_path / "several"


def no_weights(tmp_path: Path, other: Path, _: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(other / "vae", tmp_path / "vae"))
    (folder / WEIGHTS).unlink()
    return folder


WRONG: dict[str, tuple[Callable[[Path, Path, pytest.MonkeyPatch], Path], str]] = {
    "SD 1 by digest": (sd_1_by_digest, "is Stable Diffusion 1's VAE, by its SHA-256 that of some"),
    "SD 1 by config": (said(scaling_factor=0.18215), "its `scaling_factor` is 0.18215; SDXL's is"),
    "SD 1 by silence": (said(scaling_factor=None), "`scaling_factor` is not there, so 0.18215"),
    "SD 1 by metadata": (of_metadata, "metadata says `modelspec.architecture` stable-diffusion-v1"),
    "SD 1's folder": (sd_1_pipeline, "a Stable Diffusion 1 or 2 checkpoint"),
    "Flux": (
        said(latent_channels=16, scaling_factor=0.3611),
        "is Flux's VAE of 16 latent channels",
    ),
    "SD 3": (
        said(latent_channels=16, scaling_factor=1.5305),
        "is Stable Diffusion 3's VAE of 16 latent channels",
    ),
    "16 channels": (of_channels, "a VAE of 16 latent channels, as Flux and Stable Diffusion 3"),
    "TAESDXL": (with_weights(taesd), "a tiny autoencoder (TAESDXL"),
    "TAESDXL of diffusers": (with_weights(taesd_of_diffusers), "a tiny autoencoder (TAESDXL"),
    "TAESDXL's folder": (said(_class_name="AutoencoderTiny"), "is a tiny autoencoder (TAESDXL)"),
    "another kind": (said(_class_name="VQModel"), "no VAE of SDXL (AutoencoderKL)"),
    "no VAE in it": (unet_alone, "holds unet, and no VAE"),
    "half of one": (
        with_weights(lambda w: {k: v for k, v in w.items() if "encoder" not in k}),
        "lacks `encoder.down_blocks`",
    ),
    "several files": (two_files, "2 single files here, and no config.json of a VAE: a.safetensors"),
    "no weights": (no_weights, "has no complete weights"),
    "nothing": (lambda tmp_path, *_: tmp_path / "nothing", "no such folder or file"),
    "an empty folder": (lambda tmp_path, *_: tmp_path, "no VAE here: neither config.json nor a"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_vae_for_sdxl_is_refused_by_name(
    own: Path, other: Path, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, problem = WRONG[wrong]
    path = make(tmp_path, other, monkeypatch)
    with pytest.raises(InputError) as caught:
        with_vae(open_checkpoint(own), path)
    assert problem in str(caught.value)


ODD: tuple[Any, ...] = (None, True, 0, -1, 10**40, 0.5, "x", "", [], [1], {"a": 1})


def test_whatever_a_vaes_config_says_it_is_used_or_refused(
    own: Path, other: Path, tmp_path: Path
) -> None:
    folder, checkpoint = folder_alone(tmp_path, other), open_checkpoint(own)
    said = json.loads((folder / "config.json").read_text())
    used = 0
    for key in (*said, "shift_factor", "latents_mean", "latents_std"):
        for value in ODD:
            write_json(folder / "config.json", {**said, key: value})
            with suppress(InputError):
                holds_vae_alone(folder)
                used += with_vae(checkpoint, folder).vae.latent_channels == 4
    assert used > 20
