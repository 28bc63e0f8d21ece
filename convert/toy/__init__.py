"""The toy checkpoint: a small SDXL that draws coloured shapes, trained by `convert.toy.train`."""

from __future__ import annotations

import shutil
from pathlib import Path

from convert.files.appearing import appearing_folder

CHECKPOINT = Path(__file__).with_name("checkpoint")


def write_toy(folder: Path) -> None:
    """Write the toy checkpoint; raises InputError if `folder` exists and is not empty."""
    with appearing_folder(folder) as new:
        shutil.copytree(CHECKPOINT, new, copy_function=shutil.copyfile)
