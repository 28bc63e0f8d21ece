"""Whether a VAE can be computed in float16, as far as what it is tells without computing.

SDXL's own overflows there, decoder and encoder, and gives black pictures; versions of it that were
made for float16 do not. Its SHA-256 may say which one it is, or its config.json's `force_upcast`,
by which diffusers decides. Where neither does, it is measured: `verify.reference.vae_precision`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.components import COMPONENTS
from convert.known.vaes import known_vae
from convert.recipe.recipe import Recipe
from convert.values import VaePrecision


@dataclass(frozen=True)
class ChosenPrecision:
    """What a VAE is computed in, and why.

    Attributes:
        value: None where it has to be measured first.
        because: what says so; empty where the recipe does.
    """

    value: VaePrecision | None
    because: str = ""

    def to_json(self) -> dict[str, Any]:
        """Both."""
        return {"value": self.value, "because": self.because}

    def __str__(self) -> str:
        """For people."""
        if self.value is None:
            return f"VAE in float32 or float16: {self.because}"
        return f"VAE in {self.value}" + (f": {self.because}" if self.because else "")


FLOAT32 = ChosenPrecision("float32")


def chosen_precision(
    recipe: Recipe,
    checkpoint: Checkpoint,
    components: Iterable[str],
    digests: Mapping[Path, str],
) -> ChosenPrecision:
    """The precision that a recipe asks for; that of `auto`, as far as it is known.

    Args:
        components: that are converted.
        digests: SHA-256 (hex) of files whose digest is known already.
    """
    asked = recipe.target.vae_precision
    if asked != "auto":
        return ChosenPrecision(asked)
    if not any(COMPONENTS[name].part == "vae" for name in components):
        return ChosenPrecision("float32", "none is converted")
    return told_precision(checkpoint.parts["vae"], digests)


def told_precision(part: Part, digests: Mapping[Path, str]) -> ChosenPrecision:
    """What `auto` means for a VAE, as far as its SHA-256 or its config.json tells."""
    known = known_vae(part.weight_files, digests)
    if known is not None:
        fits = "overflows in float16" if known.precision == "float32" else "is made for float16"
        return ChosenPrecision(known.precision, f"by its SHA-256 it is {known.name}, which {fits}")
    upcast = part.config.get("force_upcast") if part.single is None else None
    if isinstance(upcast, bool):
        said = f"its config.json says `force_upcast`: {str(upcast).lower()}"
        return ChosenPrecision("float32" if upcast else "float16", said)
    return ChosenPrecision(
        None,
        "neither a known SHA-256 nor a config.json says what it is made for, so its largest "
        "activations are measured before it is converted",
    )
