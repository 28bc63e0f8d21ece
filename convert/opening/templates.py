"""Whose config stands behind that of a single file: it says what shapes do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.known.documents import SDXLKind, known_config
from convert.known.fitted import Shapes


def template_of(
    part: str, kind: SDXLKind, shapes: Shapes, base: Checkpoint | None
) -> Mapping[str, Any]:
    """SDXL's own config, or the base's where that has the file's widths and SDXL's has not."""
    known = known_config(part, kind)
    theirs = base.parts.get(part) if base else None
    found = _widths(part, shapes)
    if theirs is None or found == _said(part, known):
        return known
    of_base = {name: tensor.shape for name, tensor in theirs.tensors.items()}
    return theirs.config if found == _widths(part, of_base) else known


def same_widths(part: str, shapes: Shapes, config: Mapping[str, Any]) -> bool:
    """Whether a network of these shapes is as wide as a config says."""
    return _widths(part, shapes) == _said(part, config)


def _widths(part: str, shapes: Shapes) -> list[int]:
    """The widths by which networks are told apart: of blocks, or of a text encoder."""
    if part.startswith("text_encoder"):
        return list(shapes.get("embeddings.token_embedding.weight", ())[1:])
    side = "down_blocks" if part == "unet" else "encoder.down_blocks"
    found: list[int] = []
    while shape := shapes.get(f"{side}.{len(found)}.resnets.0.conv1.weight"):
        found.append(shape[0])
    return found


def _said(part: str, config: Mapping[str, Any]) -> list[int]:
    """The same of a config."""
    if part.startswith("text_encoder"):
        return [config["hidden_size"]]
    return list(config["block_out_channels"])
