"""A checkpoint's configs and tokenizers as files in diffusers' layout, wherever they lie.

The libraries read folders. Those of a checkpoint that was put together from a single file, known
documents and a base are written for them when they are asked for.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.source.snapshot import BASE, OTHER_VAE


def small_files(checkpoint: Checkpoint) -> dict[str, Path | str]:
    """Where each lies, or its text, by its path in diffusers' layout."""
    found: dict[str, Path | str] = {}
    for name, file in checkpoint.files.items():
        place = layout_name(name)
        if ("/" in place and file.suffix in (".json", ".txt")) or place == "model_index.json":
            found[place] = file
    found.update(checkpoint.documents)
    return found


def write_small_files(checkpoint: Checkpoint, folder: Path, within: str = "") -> None:
    """Write those whose path begins with `within` into `folder`."""
    for name, content in small_files(checkpoint).items():
        if not name.startswith(within):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content, "utf-8")
        else:
            shutil.copyfile(content, target)


@contextmanager
def library_folder(checkpoint: Checkpoint, name: str) -> Iterator[Path]:
    """A folder of the layout, such as `tokenizer`, for a library to read within the block.

    Raises:
        InputError: the checkpoint has none.
    """
    if checkpoint.origin is None and not checkpoint.documents:
        folder = checkpoint.path / name
        if not folder.is_dir():
            raise InputError("missing", where=folder, hint="Download the checkpoint again.")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sdxl-coreml-") as temporary:
        write_small_files(checkpoint, Path(temporary), f"{name}/")
        folder = Path(temporary, name)
        if not folder.is_dir():
            raise InputError(f"has no {name}", where=checkpoint.path)
        yield folder


def layout_name(name: str) -> str:
    """The path in diffusers' layout of one of a checkpoint's files, whoever supplied it."""
    while name.startswith(BASE):
        name = name.removeprefix(BASE)
    if name.startswith(OTHER_VAE):
        return f"vae/{name.removeprefix(OTHER_VAE).removeprefix('vae/')}"
    return name
