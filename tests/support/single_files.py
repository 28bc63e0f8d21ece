"""Single files of tiny checkpoints, in every layout that people have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from convert.opening.door import open_checkpoint
from convert.toy.single_file import PREFIXES, ldm_arrays
from tests.support.checkpoints import SHAPES, make_checkpoint

Weights = dict[str, torch.Tensor]
FileLayout = Literal["whole", "bare", "prefixed", "diffusers"]

# Widths of which configs can be told from shapes alone: heads of 64 channels, 32 groups.
KNOWABLE: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (32, 64, 128),
        "norm_num_groups": 32,
        "attention_head_dim": (1, 1, 2),
    },
    "vae": {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 32},
    "text": {"hidden_size": 64, "num_attention_heads": 1, "projection_dim": 64},
    "text_2": {"hidden_size": 128, "num_attention_heads": 2},
}
# The same of a refiner, beside KNOWABLE.
REFINER: dict[str, Any] = {
    "refiner": True,
    "unet": {
        **SHAPES["refiner"]["unet"],
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": (1, 1, 2, 2),
    },
}


def ldm_weights(folder: Path, dtype: torch.dtype | None = None) -> Weights:
    """The weights of a checkpoint in diffusers' layout by LDM's names."""
    arrays = ldm_arrays(open_checkpoint(folder))
    return {k: torch.from_numpy(v).to(dtype or torch.float16) for k, v in arrays.items()}


def write_file(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, path, metadata)
    return path


def single_file(
    path: Path,
    folder: Path,
    layout: FileLayout = "whole",
    *,
    dtype: torch.dtype | None = None,
    change: Callable[[Weights], Any] = lambda _: None,
) -> Path:
    """The checkpoint in `folder` as a single file; all but `whole` hold the UNet alone.

    Args:
        layout: bare and prefixed are LDM's names.
        change: made to the weights before they are saved.
    """
    weights = ldm_weights(folder, dtype)
    unet = PREFIXES["unet"]
    if layout in ("bare", "prefixed"):
        weights = {k: v for k, v in weights.items() if k.startswith(unet)}
    if layout == "bare":
        weights = {k.removeprefix(unet): v for k, v in weights.items()}
    if layout == "diffusers":
        tensors = open_checkpoint(folder).parts["unet"].tensors
        weights = {k: torch.from_numpy(t.read("float16")) for k, t in tensors.items()}
        weights = {k: v.to(dtype or torch.float16) for k, v in weights.items()}
    change(weights)
    return write_file(path, weights)


def make_knowable(folder: Path, **changes: Any) -> Path:
    """A tiny checkpoint whose configs follow from the shapes of its tensors."""
    merged = {key: {**values, **changes.pop(key, {})} for key, values in KNOWABLE.items()}
    return make_checkpoint(folder, **merged, **changes)
