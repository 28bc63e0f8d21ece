"""Files as `torch.save` writes them, put together by hand: whatever pickle, whatever members."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def write_archive(
    path: Path,
    data: bytes,
    storages: Mapping[str, bytes] | None = None,
    change: Callable[[zipfile.ZipFile], Any] = lambda archive: None,
) -> Path:
    """A zip archive with a pickle and storages; `change` may add members."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        change(archive)
    return path


def write_legacy(
    path: Path,
    data: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    system: bytes | None = None,
    keys: bytes | None = None,
) -> Path:
    """Five pickles, and float32 storages; `system` and `keys` replace two of the pickles."""
    held = storages or {}
    start = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2)
    start += pickle.dumps({"little_endian": True}, 2) if system is None else system
    start += data + (pickle.dumps(list(held), 2) if keys is None else keys)
    rest = b"".join(struct.pack("<q", len(value) // 4) + value for value in held.values())
    path.write_bytes(start + rest)
    return path


# ---- pickles by hand, opcode by opcode ----


def text(value: str) -> bytes:
    """A text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    """A global."""
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    """An integer of up to 64 bits."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def row(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """What a function gives."""
    return function + row(*arguments) + b"R"


def mapping(items: Mapping[str, bytes]) -> bytes:
    """A dictionary."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(value: bytes) -> bytes:
    """A pickle of protocol 2 that ends with one value."""
    return b"\x80\x02" + value + b"."


def storage(key: str = "0", count: int = 4, kind: bytes | None = None, *more: bytes) -> bytes:
    """A storage, by its persistent id."""
    kind = name("torch", "FloatStorage") if kind is None else kind
    return row(text("storage"), kind, text(key), text("cpu"), number(count), *more) + b"Q"


def tensor(
    of: bytes | None = None,
    start: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    """A tensor that lies in a storage."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if of is None else of,
        number(start),
        row(*map(number, shape)),
        row(*map(number, strides)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)
