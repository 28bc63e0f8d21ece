"""The content-addressed cache of a run: what is there is finished, whole, and named by its inputs.

An entry is a folder named by the SHA-256 of everything that determines its bytes. It is filled in
a workspace and renamed, so a killed run leaves no half entry; a record of each file's size and
time inside it shows when something else has written to it since. Locks let several processes and
several runs share one cache: who comes second waits and finds the entry.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.appearing import LOCK, locked, remove_abandoned
from convert.files.disk import digest_file
from convert.files.json_files import read_object
from convert.process.progress import Advance, silent

RECORD = "entry.json"


def key_of(value: Any) -> str:
    """The name of an entry: SHA-256 (hex) of what determines it, as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Entries under one folder, and a workspace of this process's own beside them.

    Use it as a context manager: at the end the workspace is removed. The workspaces of processes
    that were killed are removed by the next one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = root / "tmp" / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._count = 0

    def __enter__(self) -> Cache:
        with locked(self.root / "tmp" / "lock"):
            self._sweep()
            self.workspace.mkdir(parents=True)
            self._lock = (self.workspace / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        with locked(self.root / "tmp" / "lock"):
            self._sweep()

    def _sweep(self) -> None:
        for workspace in (self.root / "tmp").glob("*-*"):
            remove_abandoned(workspace)

    def new_folder(self) -> Path:
        """An empty folder in the workspace, on the cache's disk."""
        self._count += 1
        folder = self.workspace / str(self._count)
        folder.mkdir()
        return folder

    def replace(self, new: Path, path: Path) -> None:
        """Move `new`, from the workspace, to `path`; what was there goes first, in one piece."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.root / "locks" / "replace"):  # the two steps below, in two runs at once
            if path.is_dir():
                path.rename(self.new_folder() / "old")
            new.rename(path)

    def write_text(self, path: Path, text: str) -> None:
        """Write or replace a text file, atomically and without a trace beside it."""
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: Path, data: bytes) -> None:
        """The same for any file."""
        new = self.new_folder() / path.name
        new.write_bytes(data)
        self.replace(new, path)

    def entry(
        self, kind: str, key: str, fill: Callable[[Path], Mapping[str, Any] | None]
    ) -> tuple[Path, dict[str, Any]]:
        """The folder of an entry and what `fill` said of it, made by `fill(folder)` if need be.

        Args:
            kind: a word that groups entries.
            key: of `key_of`.
            fill: writes the files into an empty folder; returns facts to be kept beside them.
        """
        path = self.root / kind / key
        facts = self.known(kind, key)
        if facts is not None:
            return path, facts
        with locked(self.root / "locks" / f"{kind}-{key}"):
            facts = self._facts(path)  # another process may have made it meanwhile
            if facts is None:
                folder = self.new_folder()
                facts = dict(fill(folder) or {})
                stamps = {name: _stamp(folder / name) for name in _files(folder)}
                digest = key_of([stamps, facts])
                record = {"files": stamps, "facts": facts, "digest": digest}
                (folder / RECORD).write_text(json.dumps(record, sort_keys=True), "utf-8")
                self.replace(folder, path)
        return path, facts

    def has(self, kind: str, key: str) -> bool:
        """Whether the entry is there, whole and as it was made."""
        return self.known(kind, key) is not None

    def known(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was said of the entry when it was made; None if it is not there as it was."""
        return self._facts(self.root / kind / key)

    def discard(self, kind: str, key: str) -> None:
        """Forget an entry whose content has turned out not to be as it was made."""
        path = self.root / kind / key
        with locked(self.root / "locks" / f"{kind}-{key}"):
            if path.is_dir():
                path.rename(self.new_folder() / "old")

    def digests(self, files: Iterable[Path], report: Advance = silent) -> dict[Path, str]:
        """SHA-256 of files, remembered by inode, size and times so that 5 GB are read once.

        Files that are one, by hard links, are read once for all of them.
        """
        out = {}
        for file in files:
            _, facts = self.entry("digests", _identity(file), partial(_digest, file, report))
            out[file] = facts["sha256"]
        return out

    def remember(self, file: Path, sha256: str) -> None:
        """Spare `digests` the reading of a file whose SHA-256 is known."""
        self.entry("digests", _identity(file), lambda folder: {"sha256": sha256})

    def told(self, file: Path, question: Any, answer: Callable[[], str]) -> str:
        """What is true of a file's content, remembered as digests are.

        Args:
            question: JSON; what beside the content determines the answer.
        """
        key = key_of([_identity(file), question])
        _, facts = self.entry("told", key, lambda _: {"answer": answer()})
        return str(facts["answer"])

    def _facts(self, path: Path) -> dict[str, Any] | None:
        """What is known of an entry; None, so that it is made again, if it is not as it was."""
        try:
            record = read_object(path / RECORD)
        except InputError:
            return None
        files, facts = record.get("files"), record.get("facts")
        if record.get("digest") != key_of([files, facts]):
            return None
        if not isinstance(files, dict) or not isinstance(facts, dict):
            return None
        try:
            intact = all(_stamp(path / name) == stamp for name, stamp in files.items())
        except OSError:
            return None
        return dict(facts) if intact else None


def _digest(file: Path, report: Advance, _folder: Path) -> dict[str, str]:
    return {"sha256": digest_file(file, report)}


def _identity(file: Path) -> str:
    stat = file.stat()
    # The last is not to be set back: `cp -p`, rsync and tar bring a time of their own with a file.
    times = [stat.st_mtime_ns, stat.st_ctime_ns]
    return key_of([stat.st_dev, stat.st_ino, stat.st_size, *times])


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
