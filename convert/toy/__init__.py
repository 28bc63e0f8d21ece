"""The toy checkpoint: a small SDXL that draws coloured shapes, trained by `convert.toy.train`."""

from __future__ import annotations

import shutil
from pathlib import Path

from convert.errors import InputError
from convert.files.appearing import appearing_folder

CHECKPOINT = Path(__file__).with_name("checkpoint")


def write_toy(folder: Path) -> None:
    """Write the toy checkpoint; raises InputError if `folder` exists and is not empty."""
    with appearing_folder(folder) as new:
        shutil.copytree(CHECKPOINT, new, copy_function=shutil.copyfile)


def require_new_file(path: Path) -> None:
    """Raises InputError for what is no .safetensors file's name, or is there already."""
    if path.suffix != ".safetensors":
        raise InputError("a single file is called .safetensors", where=path)
    if path.is_dir():
        raise InputError("is a folder; a file is expected", where=path)
    if path.exists():
        hint = "Nothing is written over: remove it, or give another name."
        raise InputError("is there already", where=path, hint=hint)


def write_toy_file(path: Path) -> None:
    """Write its networks as a single file with LDM's names.

    Raises:
        InputError: as `require_new_file`, or the file cannot be written.
    """
    from convert.opening.door import open_checkpoint
    from convert.toy.single_file import write_single_file

    require_new_file(path)
    try:
        write_single_file(open_checkpoint(CHECKPOINT), path)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", where=path) from None
