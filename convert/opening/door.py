"""The one door to checkpoints, whatever they come as."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import SUBFOLDERS
from convert.errors import InputError
from convert.opening.folder import open_folder
from convert.opening.single_file import open_single_file
from convert.source.select import is_single
from convert.source.snapshot import require_target


def open_checkpoint(
    path: Path,
    *,
    name: str | None = None,
    base: Checkpoint | None = None,
    without: Collection[str] = (),
    ema: bool = False,
) -> Checkpoint:
    """Open a local SDXL checkpoint: headers and configs, no weights.

    Args:
        path: a folder in diffusers' layout, a single file, or a folder with one of these alone.
        name: what artifacts are called after; the folder's or file's name if None.
        base: an opened checkpoint that supplies what a single file lacks.
        without: networks that are not wanted of it, and need not be there: `vae`, of which
            `convert.opening.vae.with_vae` gives another.
        ema: take the EMA weights of a single file's UNet in place of the plain ones.

    Raises:
        InputError: nothing is there, it is not SDXL, a part is missing, a weight file is damaged
            or incomplete, or `base` is given where nothing is lacking; or there are no EMA weights.
    """
    require_target(path)
    if not path.exists():
        raise InputError("no such folder or file", where=path)
    single = path if path.is_file() else alone(path)
    if single is not None:
        return open_single_file(single, name=name, base=base, without=without, ema=ema)
    if ema:
        raise InputError(
            "is a folder in diffusers' layout, which has one set of weights",
            where=path,
            hint="EMA weights are in single files: leave out --ema, or `ema` in the recipe.",
        )
    if base is not None:
        raise InputError(
            "is a folder in diffusers' layout, which lacks nothing that a base could supply",
            where=path,
            hint="Leave the base away.",
        )
    return open_folder(path, name=name, without=without)


def alone(folder: Path) -> Path | None:
    """The single file that a folder without diffusers' layout holds; InputError for several."""
    if (folder / "model_index.json").exists() or any((folder / n).is_dir() for n in SUBFOLDERS):
        return None
    files = sorted(f for f in folder.iterdir() if is_single(f.name) and f.is_file())
    if len(files) > 1:
        listed = ", ".join(file.name for file in files[:8])
        raise InputError(
            f"holds {len(files)} single files and no model_index.json: {listed}",
            where=folder,
            hint="Give the path of the one that is meant.",
        )
    return files[0] if files else None
