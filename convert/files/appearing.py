"""A file or folder that appears complete or not at all, whatever kills its writer."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from convert.errors import InputError

SUFFIX = ".new"
LOCK = "lock"


@contextmanager
def appearing(path: Path, *, replacing: bool = False) -> Iterator[Path]:
    """A name to write a file or a folder under, which becomes `path` when the block ends well.

    It lies in a hidden folder beside `path`, `.NAME.RANDOM.new`, which goes with the block; those
    of writers that were killed go with the next one. Parents of `path` are made.

    Args:
        replacing: a folder at `path` that holds something gives way. By default it is an error;
            a file and an empty folder always give way.

    Raises:
        OSError: the disk is full, for example, or a folder that holds something stands at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    workspace, lock = _open_workspace(path)
    try:
        with lock:
            new = workspace / path.name
            yield new
            if replacing and path.is_dir():
                path.rename(workspace / "old")
            new.replace(path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that people name: what stands in its way is told as an InputError."""
    require_new(path)
    try:
        with appearing(path) as new:
            yield new
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", where=path) from None


def require_new(path: Path) -> None:
    """Raise InputError for a file, or for a folder that holds something already."""
    if path.is_file():
        raise InputError("is a file; a folder is expected", where=path)
    if path.exists() and any(path.iterdir()):
        raise InputError("exists and is not empty", where=path, hint="Name a new folder.")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be; others wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remove_abandoned(workspace: Path) -> None:
    """Remove a workspace if the process that made it is gone; its lock went with it."""
    try:
        with (workspace / LOCK).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(workspace, ignore_errors=True)
    except FileNotFoundError:
        shutil.rmtree(workspace, ignore_errors=True)
    except OSError:  # it is locked: somebody works there
        return


def _sweep(path: Path) -> None:
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.suffix == SUFFIX and other.is_dir():
            remove_abandoned(other)


def _open_workspace(path: Path) -> tuple[Path, IO[str]]:
    """A folder of this writer's own, and its lock.

    Another writer's sweep may come between its making and its locking; then there is another.
    """
    while True:
        workspace = path.with_name(f".{path.name}.{os.urandom(4).hex()}{SUFFIX}")
        workspace.mkdir()
        try:
            lock = (workspace / LOCK).open("w")
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (workspace / LOCK).exists():
            return workspace, lock
        lock.close()
