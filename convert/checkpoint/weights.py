"""One door for every file that holds tensors: what a file is, its content says, never its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convert.checkpoint.pickles import Pickled, read_legacy, read_zip
from convert.checkpoint.quantised import HINT, unscaled
from convert.checkpoint.tensors import Tensor, read_safetensors
from convert.errors import InputError
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import reason
from convert.source.select import SINGLE

WeightsFormat = Literal["safetensors", "zip pickle", "legacy pickle"]

START = 512  # bytes that tell what a file is
# What begins so is known and is no file of weights that we read.
OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"GGUF|lmgg|tjgg|fmgg|algg", "a GGUF file, whose weights are quantised", HINT),
    (
        rb"\s*(<!doctype|<html|<\?xml|<head|<script)",
        "a web page",
        "The download got a page in place of the file, often a login: download it again.",
    ),
    (
        rb"\s*\{\s*[\"}]",
        "a JSON document",
        "The download got a message in place of the file, or this is its config: look inside.",
    ),
    (rb"\x93NUMPY", "a numpy array (.npy)", ""),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes them", ""),
    (rb"\x08[\x01-\x20](\x12|\x1a|:|\x42|\x72)", "an ONNX model", ""),
    (rb"[\x81-\x8f]([\xa1-\xbf]|\xd9)", "a msgpack file, as Flax writes them", ""),
    (rb"\x1f\x8b", "a gzip archive", "Unpack it."),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it."),
    (rb"Rar!\x1a\x07", "a RAR archive", "Unpack it."),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", "Unpack it."),
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|GIF8", "a picture", ""),
    (rb"%PDF", "a PDF document", ""),
    (rb"(?s).{257}ustar", "a tar archive", "Unpack it."),
    (rb"[\t\n\f\r -~]+\Z", "a text", "Look inside: it may say what became of the file."),
    (rb"\0{512}$", "a file of zeros", "The download was not finished: download it again."),
)
SHOWN = 5  # files of a folder that are named
PLAIN = "Give the weights as .safetensors, or as .ckpt, .pt or .bin as PyTorch writes them."


@dataclass(frozen=True)
class WeightsFile:
    """What one file holds."""

    path: Path
    format: WeightsFormat
    tensors: Mapping[str, Tensor]  # by the file's own names, scales applied and taken out
    metadata: Mapping[str, str]  # of a safetensors header; it may lie
    others: tuple[str, ...] = ()  # what a pickle holds beside tensors, by name


def tensor_names(path: Path) -> Collection[str]:
    """The names of a file's tensors, for whoever asks what it is; none if it is no weight file."""
    try:
        return read_weights(path).tensors.keys() if path.is_file() else ()
    except InputError:
        return ()


def read_weights(path: Path) -> WeightsFile:
    """The tensors of a file, by reference; nothing of the file is run.

    Raises:
        InputError: not a file of weights (says what it is), a damaged or truncated one, or one
            whose weights are quantised in a way that is not read.
    """
    start, size = _start(path)
    if not size:
        raise InputError("is empty", where=path, hint="Download it again.")
    refuse_pointer(path, start)
    if _is_safetensors(start):
        return _of_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _of_pickle(path, "zip pickle", read_zip(path))
    if _is_pickle(start):
        return _of_pickle(path, "legacy pickle", read_legacy(path))
    for pattern, what, hint in OTHERS:
        if re.match(pattern, start, re.IGNORECASE):
            raise InputError(f"is {what}, no file of weights", where=path, hint=hint or PLAIN)
    return _of_safetensors(path)


def _start(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    try:
        if path.is_dir():
            raise InputError(
                "is a folder; a file of weights is expected", where=path, hint=_held(path)
            )
        if path.exists() and not path.is_file():
            raise InputError("is not a file", where=path)
        with path.open("rb") as file:
            return file.read(START), path.stat().st_size
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"cannot be read: {reason(error)}", where=path) from None


def _held(folder: Path) -> str:
    """Which files of a folder may be meant."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SINGLE)
    found = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
    return f"Give the file itself; the folder holds {found or 'none'}."


def _is_safetensors(start: bytes) -> bool:
    """Whether a header's length stands before an object; lengths are far below 2⁴⁰."""
    return start[5:8] == b"\0\0\0" and start[8:9] == b"{"


def _is_pickle(start: bytes) -> bool:
    """Whether the protocol's number stands first, or a global as the oldest protocol names it."""
    is_new = start[:1] == b"\x80" and start[1:2] in (b"\1", b"\2", b"\3", b"\4", b"\5")
    return is_new or re.match(rb"[(\]})]*[ci][\w.]+\n[\w.]+\n", start) is not None


def _of_pickle(path: Path, format_: WeightsFormat, found: Pickled) -> WeightsFile:
    return WeightsFile(path, format_, unscaled(found.tensors, {}, path), {}, found.others)


def _of_safetensors(path: Path) -> WeightsFile:
    tensors, metadata = read_safetensors(path)
    return WeightsFile(path, "safetensors", unscaled(tensors, metadata, path), metadata)
