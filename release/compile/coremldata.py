"""`coremldata.bin`: what Core ML reads first of a compiled model, and its analytics twin.

All little endian and unaligned; a string is its length (u64) and its bytes.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import Any

ML_PROGRAM = 502  # the tag of `Model.mlProgram` (coremltools `Model.proto`)
ORIGINAL = 5  # the first version of Core ML that had ML Programs


def coremldata(model: Any, description: bytes) -> bytes:
    """The header, the description of the interface, and a trailer for each function.

    Args:
        model: the `Model` message.
        description: its `description` as the package has it, serialised.
    """
    version = model.specificationVersion
    if not model.description.HasField("metadata"):
        description += b"\xa2\x06\x00"  # field 100, empty
    # Specifications 6 and 7 say 5 here, from 8 on each says its own number.
    major = version if version >= 8 else ORIGINAL
    header = struct.pack("<I3Q", ML_PROGRAM, major, 0, 0) + _string(b"generic")
    header += struct.pack("<4Q", version, 0, 0, 0)
    functions = max(1, len(model.mlProgram.functions))
    return header + _string(description) + functions * (struct.pack("<I", ML_PROGRAM) + bytes(12))


def analytics(model_file: bytes, name: str) -> bytes:
    """`analytics/coremldata.bin`: the SHA-256 of the package's model file, and its stem."""
    digest = base64.b64encode(hashlib.sha256(model_file).digest()).decode()
    return _section(
        "NeuralNetworkModelDetails", {"containsCustomLayer": "0", "modelDimension": "0"}
    ) + _section("SpecificationDetails", {"modelHash": digest, "modelName": name})


def serialised_description(model_file: bytes) -> bytes:
    """Field 2 of a serialised `Model`, its bytes as they are.

    protobuf writes maps in any order, so parsing and serialising would not give the same bytes.
    Several fields of that number, which protobuf merges, are strung together.
    """
    found, at = b"", 0
    while at < len(model_file):
        key, at = _varint(model_file, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(model_file, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            length, at = _varint(model_file, at)
            if key >> 3 == 2:
                found += model_file[at : at + length]
            at += length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _section(name: str, entries: Mapping[str, str]) -> bytes:
    data = _string(name.encode()) + struct.pack("<Q", len(entries))
    for key, value in entries.items():
        data += _string(key.encode()) + _string(value.encode())
    return data


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text
