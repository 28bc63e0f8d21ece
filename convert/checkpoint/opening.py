"""The one door to checkpoints, whatever they come as."""

from __future__ import annotations

from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.folder import open_folder
from convert.errors import InputError
from convert.source.snapshot import require_target


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a local SDXL checkpoint in diffusers' layout.

    Args:
        path: the folder with `model_index.json`.
        name: what artifacts are called after; the folder's name if None.

    Raises:
        InputError: not a folder, not SDXL, a missing part, a damaged or incomplete weight file.
    """
    require_target(path)
    if not path.exists():
        raise InputError("no such folder", where=path)
    if not path.is_dir():
        raise InputError(
            "is a file; a checkpoint is a folder in diffusers' layout",
            where=path,
            hint="Single .safetensors and .ckpt files follow in a later version.",
        )
    return open_folder(path, name=name)
