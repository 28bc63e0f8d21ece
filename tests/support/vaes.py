"""VAEs alone, in every spelling that people have them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from convert.toy.single_file import PREFIXES
from tests.support.single_files import Weights, ldm_weights, single_file, write_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_weights(checkpoint: Path) -> Weights:
    """The weights of a checkpoint's VAE by diffusers' names."""
    return load_file(checkpoint / "vae" / WEIGHTS)


def bare_ldm(folder: Path, checkpoint: Path) -> Path:
    """As stabilityai/sdxl-vae's sdxl_vae.safetensors."""
    prefix = PREFIXES["vae"]
    weights = {k.removeprefix(prefix): v for k, v in ldm_weights(checkpoint).items() if prefix in k}
    weights["loss.logvar"] = torch.zeros(1)  # as old files have it
    return write_file(folder / "vae.safetensors", weights)


def bare_diffusers(folder: Path, checkpoint: Path) -> Path:
    """As its diffusion_pytorch_model.safetensors without config.json."""
    return write_file(folder / "vae.safetensors", diffusers_weights(checkpoint))


def bare_pickle(folder: Path, checkpoint: Path) -> Path:
    """As the .vae.pt files of older days."""
    prefix = PREFIXES["vae"]
    weights = {k.removeprefix(prefix): v for k, v in ldm_weights(checkpoint).items() if prefix in k}
    torch.save({"state_dict": weights}, folder / "vae.vae.pt")
    return folder / "vae.vae.pt"


def whole_file(folder: Path, checkpoint: Path) -> Path:
    """A whole checkpoint as a single file."""
    return single_file(folder / "other.safetensors", checkpoint)


def folder_alone(folder: Path, checkpoint: Path) -> Path:
    """As madebyollin/sdxl-vae-fp16-fix: a folder, with the same as a single file in it."""
    shutil.copytree(checkpoint / "vae", folder / "vae-repo")
    bare_ldm(folder / "vae-repo", checkpoint).rename(folder / "vae-repo" / "sdxl_vae.safetensors")
    (folder / "vae-repo" / "README.md").write_text("A VAE.\n")
    return folder / "vae-repo"


def whole_folder(folder: Path, checkpoint: Path) -> Path:
    """A whole checkpoint in diffusers' layout."""
    return checkpoint


SPELLINGS: dict[str, Callable[[Path, Path], Path]] = {
    "LDM's names": bare_ldm,
    "diffusers' names": bare_diffusers,
    "a pickle": bare_pickle,
    "a whole file": whole_file,
    "a folder alone": folder_alone,
    "a whole folder": whole_folder,
}


def edit_vae_config(folder: Path, **changes: object) -> Path:
    """Change what a VAE's config.json says; None removes a key."""
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


def scaled_vae(folder: Path, factors: Mapping[str, float]) -> None:
    """Multiply the first convolutions of a VAE's halves, and so what they give, by a factor each.

    Group norms keep the rest as it is, but for what is added to these values.
    """
    file = folder / WEIGHTS
    weights = load_file(file)
    for half, factor in factors.items():
        for kind in ("weight", "bias"):
            name = f"{half}.conv_in.{kind}"
            weights[name] = weights[name].float() * factor
    save_file({k: v.contiguous() for k, v in weights.items()}, file, {"format": "pt"})


def brighter_vae(folder: Path, source: Path) -> Path:
    """A checkpoint's VAE in LDM's names, but for its pictures, which are brighter."""
    path = bare_ldm(folder, source)
    weights = load_file(path)
    weights["decoder.conv_out.bias"] += 0.1
    save_file(weights, path)
    return path
