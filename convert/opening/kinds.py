"""What a UNet is for, and what it predicts, as far as a file or an opened checkpoint tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.layout import REFINERS, FileLayout
from convert.errors import InputError
from convert.files.json_files import read_bytes
from convert.known.documents import SDXLKind

BY_CHANNELS: dict[int, SDXLKind] = {4: "base", 9: "inpainting", 8: "edit"}
IS_REFINER = {2816: False, 2560: True}  # by what SDXL's UNets are told beside the prompt
_IS_V = re.compile(rb"""^\s*parameterization:\s*["']?v["']?\s*$|\bVScaling\b""", re.MULTILINE)
NOTHING_SAYS = "SDXL's own; nothing in the file says otherwise"


def kind_of(checkpoint: Checkpoint) -> SDXLKind:
    """What an opened checkpoint's UNet is for."""
    if checkpoint.origin is not None:
        return checkpoint.origin.kind
    if "text_encoder" not in checkpoint.parts:
        return "refiner"
    return BY_CHANNELS.get(checkpoint.part("unet").config.get("in_channels", 4), "base")


def kind_of_file(layout: FileLayout, where: Path, base: Checkpoint | None = None) -> SDXLKind:
    """What the UNet of a file is for; without one, the base's.

    Shapes tell it of SDXL's own sizes. Of others, the place of text encoder 2 among the file's
    names, or whether `base` is a refiner.

    Raises:
        InputError: its UNet takes channels that no such model has.
    """
    unet = layout.parts.get("unet")
    if unet is None:
        return kind_of(base) if base else "base"
    shapes = {name: tensor.shape for name, tensor in unet.tensors.items()}
    told = shapes.get("label_emb.0.0.weight") or shapes.get("add_embedding.linear_1.weight") or ()
    refiner = IS_REFINER.get(told[1]) if len(told) == 2 else None
    if refiner is None and "text_encoder" not in layout.parts:
        encoder = layout.parts.get("text_encoder_2")
        if encoder is not None:
            refiner = encoder.prefix == REFINERS
        else:
            refiner = base is not None and kind_of(base) == "refiner"
    if refiner:
        return "refiner"
    conv_in = shapes.get("input_blocks.0.0.weight") or shapes.get("conv_in.weight") or ()
    channels = conv_in[1] if len(conv_in) == 4 else 4
    if channels not in BY_CHANNELS:
        raise InputError(
            f"its UNet takes {channels} channels; SDXL's takes 4, or 9 for inpainting",
            where=where,
            hint="This is a model of its own kind, for which apps have no inputs.",
        )
    return BY_CHANNELS[channels]


def settings_beside(path: Path) -> Path | None:
    """The .yaml file beside a single file, in which web UIs look for its settings."""
    found = path.with_suffix(".yaml")
    return found if found.is_file() else None


def prediction_of(layout: FileLayout, metadata: Mapping[str, str], path: Path) -> tuple[str, str]:
    """What a file at `path` says that its UNet predicts, or the settings beside it; what says so.

    Source: Forge's `backend/loader.py`, and stable-diffusion-webui's configs, for the settings.
    """
    if "v_pred" in layout.marks:
        return "v_prediction", "the mark `v_pred` in the file"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if metadata.get(key) == "v":
            return "v_prediction", f"the file's metadata, `{key}`"
    beside = settings_beside(path)
    if beside is not None and _IS_V.search(read_bytes(beside)):
        return "v_prediction", f"{beside.name} beside the file"
    return "epsilon", NOTHING_SAYS
