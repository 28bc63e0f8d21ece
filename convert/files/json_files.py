"""JSON and text from outside, read in one way: whatever is damaged is an error that names the file.

Python's `json` takes more than JSON (NaN, the last of two equal keys, numbers that overflow to
infinity), and fails in its own ways on the rest (deep nesting, integers of thousands of digits,
half a surrogate pair that only fails when it is written). Here all of it is an `InputError`.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.git_lfs import refuse_pointer

LARGEST = 64 << 20  # bytes; the largest tokenizer.json have a quarter of it
DEEPEST = 64  # lists and objects in each other; documents of this field have about six
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 80  # letters of a value in an error


class FileMissing(InputError):
    """There is no such file."""


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """A small file's content.

    Raises:
        FileMissing: nothing is there.
        InputError: not a file, not readable, larger than `largest` bytes, or a Git LFS pointer.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError("is a folder; a file is expected", where=path)
        if not path.is_file():
            raise InputError("is not a file", where=path)
        if size > largest:
            raise InputError(f"has {size} bytes; at most {largest} are read", where=path)
        data = path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise FileMissing("is a link to nothing", where=path) from None
        raise FileMissing("missing", where=path) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"cannot be read: {reason(error)}", where=path) from None
    refuse_pointer(path, data)
    return data


def decode(data: bytes, where: object) -> str:
    """UTF-8 text, with or without a byte-order mark; raises InputError for anything else."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})", where=where) from None


def read_text(path: Path, *, largest: int = LARGEST) -> str:
    """A small text file; raises as `read_bytes` and `decode` do."""
    return decode(read_bytes(path, largest=largest), path)


def read_json(path: Path, *, infinities: bool = False) -> Any:
    """The value of a JSON file; raises as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), path, infinities=infinities)


def read_object(path: Path, *, infinities: bool = False) -> dict[str, Any]:
    """The object of a JSON file; raises as `read_json`, and for a value of another kind."""
    return require_object(read_json(path, infinities=infinities), path)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises as `read_text`, and for what is not TOML."""
    text = read_text(path)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise InputError("not readable as TOML: nested too deeply", where=path) from None
    except ValueError as error:
        raise InputError(f"not readable as TOML: {error}", where=path) from None
    _require_shallow(text, values, path)
    return values


def parse_json(text: str | bytes, where: object, *, infinities: bool = False) -> Any:
    """The value that `text` spells in JSON.

    Args:
        where: what errors call it, such as its file.
        infinities: also take Infinity and -Infinity, which diffusers writes in scheduler configs
            (`lambda_min_clipped`).

    Raises:
        InputError: not UTF-8, not JSON, a key twice in one object, NaN, a number out of range,
            nested more than `DEEPEST` deep, or half a surrogate pair.
    """
    if isinstance(text, bytes):
        text = decode(text, where)
    text = text.removeprefix("\ufeff")

    def constant(name: str) -> float:
        if infinities and name != "NaN":
            return float(name)
        raise InputError(f"holds {name}, which is no JSON", where=where)

    def number(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise InputError(f"holds the number {_cut(digits)}, out of range", where=where)
        return value

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key in found if counts[key] > 1)
            raise InputError(f"has the key {shown(twice)} twice", where=where)
        return found

    try:
        value = json.loads(
            text, parse_constant=constant, parse_float=number, object_pairs_hook=members
        )
    except RecursionError:
        raise InputError("not readable as JSON: nested too deeply", where=where) from None
    except ValueError as error:  # also an integer of more digits than Python reads
        what = reason(error)
        raise InputError(f"not readable as JSON: {what}", where=where) from None
    _require_shallow(text, value, where)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            problem = "holds half a surrogate pair, which is no character"
            raise InputError(problem, where=where) from None
    return value


def require_object(value: Any, where: object) -> dict[str, Any]:
    """The value, if it is a JSON object; else InputError."""
    if not isinstance(value, dict):
        raise InputError(f"holds {kind(value)} where an object is expected", where=where)
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words: `the text "8"`, `a list`, `null`."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "null"
    noun = "the text" if isinstance(value, str) else "the number"
    return shown(value) if isinstance(value, bool) else f"{noun} {shown(value)}"


def shown(value: Any) -> str:
    """A value as JSON writes it, on one line and cut where it is long."""
    if isinstance(value, str):
        value = value[: 2 * _SHOWN]
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return _cut(text)


def readable(path: str) -> str:
    """A path as text that can be written: bytes of it that are no UTF-8 as `\\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def reason(error: BaseException) -> str:
    """An error of the system or a library in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _cut(next(iter(text.strip().splitlines()), "") or type(error).__name__, 200)


def dotted(path: Sequence[str | int]) -> str:
    """The path of a key in a document: `checks[0].metrics.snr_db`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _cut(text: str, most: int = _SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 4]}…"


def _require_shallow(text: str, value: Any, where: object) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        for inner in (outer.values() if isinstance(outer, dict) else outer)
        if isinstance(inner, dict | list)
    ]:
        depth += 1
        if depth > DEEPEST:
            raise InputError(f"is nested more than {DEEPEST} levels deep", where=where)
