"""SDXL's own configs, as data of the package: the values of Stability AI's releases.

Of a single file nothing else says how its networks are set up. Whatever its shapes tell is taken
from them instead; see `convert.known.fitted`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

# What a UNet is for; `edit` is InstructPix2Pix, which is given the picture to edit.
SDXLKind = Literal["base", "refiner", "inpainting", "edit"]
KINDS: tuple[SDXLKind, ...] = get_args(SDXLKind)
LABELS: dict[SDXLKind, str] = {
    "base": "SDXL base",
    "refiner": "SDXL refiner",
    "inpainting": "SDXL inpainting",
    "edit": "SDXL InstructPix2Pix",
}
_DATA = Path(__file__).with_name("sdxl")


def known_config(part: str, kind: SDXLKind) -> dict[str, Any]:
    """The config.json of a network's folder, as SDXL's own release of that kind has it."""
    return document("unet_refiner" if (part, kind) == ("unet", "refiner") else part)


def known_index(kind: SDXLKind) -> dict[str, Any]:
    """The model_index.json of that kind."""
    return document("model_index" if kind == "base" else f"model_index_{kind}")


def known_scheduler(*, v_prediction: bool = False, zero_snr: bool = False) -> dict[str, Any]:
    """The scheduler_config.json, for a UNet that predicts the noise or v.

    Args:
        zero_snr: the schedule ends in pure noise.
    """
    found = document("scheduler")
    if v_prediction:
        found["prediction_type"] = "v_prediction"
    if zero_snr:
        found["rescale_betas_zero_snr"] = True
    return found


def document(name: str) -> dict[str, Any]:
    """One of the JSON files beside this module, as a copy of one's own."""
    return dict(json.loads(_text(name)))


@cache
def _text(name: str) -> str:
    return (_DATA / f"{name}.json").read_text("utf-8")
