"""VAEs that are known by the SHA-256 of their files, because nothing inside the files tells them.

SDXL's own VAE, its float16 version and Stable Diffusion 1's have the same tensors in the same
shapes; but they belong to different latents, or overflow in float16. Source of the digests: the
repos' own listings on the Hub. Pony Diffusion V6 XL's VAE is the same file as the float16 version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from convert.files.disk import digest_file
from convert.values import VaePrecision


@dataclass(frozen=True)
class KnownVae:
    """A published VAE.

    Attributes:
        name: its repo on the Hub.
        family: whose latents it is for.
        precision: the smallest that it can be computed in.
        license: as its card says it.
    """

    name: str
    family: Literal["SDXL", "Stable Diffusion 1"]
    precision: VaePrecision
    license: str = "mit"


_SDXL = KnownVae("stabilityai/sdxl-vae", "SDXL", "float32")
_FP16_FIX = KnownVae("madebyollin/sdxl-vae-fp16-fix", "SDXL", "float16")
_SD_1 = KnownVae("stabilityai/sd-vae-ft-mse-original", "Stable Diffusion 1", "float16")

KNOWN: Mapping[str, KnownVae] = MappingProxyType(
    {
        # sdxl_vae.safetensors
        "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": _SDXL,
        # sdxl_vae.safetensors and diffusion_pytorch_model.safetensors
        "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": _FP16_FIX,
        "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c": _FP16_FIX,
        # vae-ft-mse-840000-ema-pruned.safetensors and .ckpt
        "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": _SD_1,
        "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab": _SD_1,
    }
)
# Bytes of these files: no other needs to be read to its end for its digest.
SIZES = frozenset({334641162, 334641164, 334641190, 334643238, 334643268, 334695179})


def known_vae(files: Collection[Path], digests: Mapping[Path, str]) -> KnownVae | None:
    """Which of them a VAE is that is read from these files; None if it is none.

    Args:
        digests: SHA-256 (hex) of files whose digest is known; others are read where their size
            fits.
    """
    if len(files) != 1:
        return None
    (file,) = files
    digest = digests.get(file)
    if digest is None and file.stat().st_size in SIZES:
        digest = digest_file(file)
    return KNOWN.get(digest or "")
