"""What was found is kept in a run's cache, by the digest of all that it is about.

```
ENTRY/found.json     checks; where there are any, generations and the ops that rounding costs most
ENTRY/images/*.png   the pictures that generations name
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convert.files.cache import Cache
from convert.process.code import code_digest
from verify.judge.checks import Check, versions

ENTRIES = "proofs"  # what the cache calls them
FILE = "found.json"


@dataclass(frozen=True)
class Findings:
    """What came of a task.

    Attributes:
        checks: judged by the built-in policy; a recipe's gates come later.
        generations: of `verify.reports.images.generation_json`.
        rounding: of `verify.bisect.ops.worst_ops`, of the program that was executed.
        images: PNG files by the paths that `generations` has; those of a found entry are read
            when they are asked for.
    """

    checks: tuple[Check, ...]
    generations: tuple[dict[str, Any], ...] = ()
    rounding: tuple[dict[str, Any], ...] = ()
    images: Mapping[str, bytes | Path] = field(default_factory=dict)


def made_by() -> list[Any]:
    """What is found by whom; a part of the key of everything."""
    return [code_digest("measure"), versions()]


def kept(cache: Cache, key: str, make: Callable[[], Findings]) -> Findings:
    """What was found under a key, from the cache, or made and kept; damaged, it is made again."""

    def fill(folder: Path) -> None:
        _write(make(), folder)

    path, _ = cache.entry(ENTRIES, key, fill)
    try:
        return _read(path)
    except (OSError, ValidationError):
        cache.discard(ENTRIES, key)
        path, _ = cache.entry(ENTRIES, key, fill)
        return _read(path)


def found(cache: Cache, key: str) -> Findings | None:
    """What was found under a key, if it is there and whole."""
    if not cache.has(ENTRIES, key):
        return None
    try:
        return _read(cache.root / ENTRIES / key)
    except (OSError, ValidationError):
        return None


def _write(made: Findings, folder: Path) -> None:
    for name, image in made.images.items():
        assert isinstance(image, bytes)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image)
    values = {
        "checks": [asdict(check) for check in made.checks],
        "generations": made.generations,
        "rounding": made.rounding,
    }
    (folder / FILE).write_text(json.dumps(values), "utf-8")


def _read(folder: Path) -> Findings:
    read = _adapter().validate_json((folder / FILE).read_bytes())
    images = {f"images/{file.name}": file for file in sorted(folder.glob("images/*.png"))}
    return Findings(read.checks, read.generations, read.rounding, images)


@once
def _adapter() -> TypeAdapter[Findings]:
    return TypeAdapter(Findings)
