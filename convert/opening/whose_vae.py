"""Whose latents a VAE is for, as far as its digest, its config.json or its metadata tells.

SDXL's and Stable Diffusion 1's have the same tensors in the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Part
from convert.checkpoint.latents import DEFAULT, SCALING_FACTOR
from convert.checkpoint.layout import FileLayout
from convert.checkpoint.weights import WeightsFile
from convert.errors import InputError
from convert.files.json_files import shown
from convert.known.families import SDXL_ONLY, TINY, other_channels
from convert.known.vaes import KnownVae

_CHANNELS = 4
# What VAEs of other families say of themselves in config.json: the factor that scales latents.
# Sources: the configs of black-forest-labs/FLUX.1-dev and stabilityai/stable-diffusion-3-medium.
_FACTORS = {0.3611: "Flux's", 1.5305: "Stable Diffusion 3's"}
_OTHER_SCALE = (
    "Colours and details would be wrong. SDXL's VAEs scale by 0.13025: stabilityai/sdxl-vae, "
    "madebyollin/sdxl-vae-fp16-fix and those made from them."
)
_SDXL_METADATA, _OTHER_METADATA = "stable-diffusion-xl", ("stable-diffusion-v", "flux", "sd3")


def require_class(config: Mapping[str, Any], where: Path) -> None:
    """Raise InputError for the config of another kind of autoencoder, by name."""
    found = config.get("_class_name")
    if found == "AutoencoderTiny":
        raise InputError("is a tiny autoencoder (TAESDXL), no VAE", where=where, hint=TINY)
    if found is None and "latent_channels" in config:
        return
    if found != "AutoencoderKL":
        raise InputError(
            f"is the config of {shown(found) if found else 'something else'}, no VAE of SDXL "
            "(AutoencoderKL)",
            where=where,
            hint=SDXL_ONLY,
        )


def require_sdxl(part: Part, known: KnownVae | None, *, read: bool) -> str | None:
    """What says that a VAE is for SDXL's latents; None if nothing does.

    Args:
        read: its config was read from a file, rather than found from its shapes.

    Raises:
        InputError: something says that it is for others.
    """
    where, config = part.config_file, part.config
    channels = config.get("latent_channels", _CHANNELS)
    factor = config.get("scaling_factor", DEFAULT)
    whose = _FACTORS.get(factor) if isinstance(factor, float) else None
    if channels != _CHANNELS:
        said = f"{whose} VAE" if whose else "a VAE"
        count = other_channels(channels) if isinstance(channels, int) else shown(channels)
        problem = f"is {said} of {count}, where SDXL has {_CHANNELS}"
        raise InputError(problem, where=where, hint=SDXL_ONLY)
    if known is not None and known.family != "SDXL":
        raise InputError(
            f"is {known.family}'s VAE, by its SHA-256 that of {known.name}",
            where=part.path,
            hint=_OTHER_SCALE,
        )
    if known is not None:
        return f"by its SHA-256 it is {known.name}"
    if not read:
        return None
    if factor == DEFAULT:
        said = f"is {DEFAULT}" if "scaling_factor" in config else f"is not there, so {DEFAULT}"
        raise InputError(
            f"is Stable Diffusion 1's VAE: its `scaling_factor` {said}; SDXL's is {SCALING_FACTOR}",
            where=where,
            hint=f"{_OTHER_SCALE} If it is one of these, say so there.",
        )
    return f"its config.json scales latents by {factor}"


def evidence_of(layout: FileLayout, file: WeightsFile) -> str | None:
    """What else of a file says that its VAE is SDXL's; InputError if something says otherwise."""
    if "unet" in layout.parts or "text_encoder_2" in layout.parts:
        return "the checkpoint that holds it is SDXL's"
    said = file.metadata.get("modelspec.architecture", "")
    if said.startswith(_OTHER_METADATA):
        raise InputError(
            f"is the VAE of another family: its metadata says `modelspec.architecture` {said}",
            where=file.path,
            hint=_OTHER_SCALE,
        )
    return f"its metadata says {said}" if said.startswith(_SDXL_METADATA) else None
