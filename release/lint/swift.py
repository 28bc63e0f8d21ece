"""What Swift makes of a compiled model's metadata.json, as strictly as its decoders do.

The apps decode with Foundation's JSONDecoder into typed structures: one value of another type, and
nothing is decoded at all. `Undecodable` says which value it was; `Crash` stands for a force-unwrap
of nil or an index out of range, which ends the app."""

from __future__ import annotations

import json
from typing import Any

from convert.errors import InputError
from release.lint.tree import Tree, read_json


class Undecodable(Exception):
    """The app's decoder throws."""


class Crash(Exception):
    """The app ends."""


def metadata(tree: Tree, model: str) -> list[Any]:
    """`metadata.json` of a compiled model as the array that every app expects.

    Raises:
        Undecodable: it is missing, no JSON, or no array.
    """
    path = f"{model}/metadata.json"
    try:
        value = read_json(tree, path)
    except OSError:
        raise Undecodable(f"{path} is missing") from None
    except InputError as error:
        raise Undecodable(f"{path} {error.problem}") from None
    if not isinstance(value, list):
        raise Undecodable(f"{path} is no array")
    return value


def histogram(entry: Any, path: str) -> dict[str, int]:
    """`mlProgramOperationTypeHistogram` as `[String: Int]`."""
    value = _member(entry, "mlProgramOperationTypeHistogram", path)
    if not isinstance(value, dict):
        raise Undecodable(f"{path}: mlProgramOperationTypeHistogram is no object")
    for key, count in value.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise Undecodable(f"{path}: the count of {key} is {json.dumps(count)}, not an integer")
    return value


def schema(entry: Any, path: str, keys: tuple[str, ...] | None = None) -> list[dict[str, str]]:
    """`inputSchema` as `[[String: String]]`, or with strings at `keys`, which must be there."""
    value = _member(entry, "inputSchema", path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Undecodable(f"{path}: inputSchema is no array of objects")
    for index, item in enumerate(value):
        for key in keys or item:
            found = item.get(key)
            if not isinstance(found, str):
                shown = json.dumps(found) if key in item else "missing"
                raise Undecodable(f"{path}: inputSchema[{index}].{key} is {shown}, not a string")
    return value


def strings(entry: Any, key: str, path: str) -> dict[str, str]:
    """An optional object as `[String: String]`; empty where it is absent."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise Undecodable(f"{path}: {key} holds something that is not a string")
    return value


def shape(text: str) -> list[int]:
    """`[1, 3, 64, 96]` as the apps split it: what is no number is left out."""
    parts = text.strip("[]").split(", ")
    return [int(p) for p in (part.strip() for part in parts) if p.lstrip("-").isdecimal()]


def at(sizes: list[int], index: int, what: str) -> int:
    """`sizes[index]`, which ends the app where there is none."""
    if index >= len(sizes):
        raise Crash(f"{what} has {len(sizes)} sizes, the app takes the one at {index}")
    return sizes[index]


def _member(entry: Any, key: str, path: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise Undecodable(f"{path} has no {key}")
    return entry[key]
