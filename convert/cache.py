"""The content-addressed cache of a run: what is there is finished, whole, and named by its inputs.

An entry is a folder named by the SHA-256 of everything that determines its bytes. It is filled
under a temporary name and renamed, so a killed run leaves no half entry; a record of each file's
size and time inside it shows when something else has written to it since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

RECORD = "entry.json"


def key_of(value: Any) -> str:
    """The name of an entry: SHA-256 (hex) of what determines it, as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 of the code that shapes a package, so that a changed converter redoes its work."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted([*root.glob("*.py"), *root.glob("models/*.py")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def digest_file(path: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 (hex) of a file, streamed; `report` is told the bytes as they are read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(4 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if report:
                report(count)
    return digest.hexdigest()


class Cache:
    """Entries under one folder; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        facts = self._facts(path)
        if facts is not None:
            return path, facts
        temporary = self.root / "tmp" / f"{kind}-{key[:16]}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            facts = dict(fill(temporary) or {})
            stamps = {name: _stamp(temporary / name) for name in _files(temporary)}
            record = json.dumps({"files": stamps, "facts": facts}, sort_keys=True)
            (temporary / RECORD).write_text(record, "utf-8")
            path.parent.mkdir(parents=True, exist_ok=True)
            _move(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path, facts

    def has(self, kind: str, key: str) -> bool:
        """Whether the entry is there, whole and as it was made."""
        return self._facts(self.root / kind / key) is not None

    def digests(
        self, files: Iterable[Path], report: Callable[[int], None] | None = None
    ) -> dict[Path, str]:
        """SHA-256 of files, remembered by path, size and time so that 5 GB are read once."""
        out = {}
        for file in files:
            stat = file.stat()
            identity = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]

            def fill(folder: Path, file: Path = file) -> dict[str, str]:
                return {"sha256": digest_file(file, report)}

            out[file] = self.entry("digests", key_of(identity), fill)[1]["sha256"]
        return out

    def _facts(self, path: Path) -> dict[str, Any] | None:
        try:
            record = json.loads((path / RECORD).read_text("utf-8"))
            intact = all(_stamp(path / name) == stamp for name, stamp in record["files"].items())
            return dict(record["facts"]) if intact else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _move(source: Path, path: Path) -> None:
    try:
        source.rename(path)
    except OSError:  # a damaged entry, or another process was faster; either may go
        shutil.rmtree(path, ignore_errors=True)
        source.rename(path)


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
