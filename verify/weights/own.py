"""What a weight file of ours holds beside the checkpoint's tensors.

Zeros and ones of norms, zeros of biases and of zero points, a causal mask, frequencies: told here a
second time, because no checkpoint has them, and what is executed for a package has the same file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from verify.mil.blob import HEADER, NUMPY_DTYPES, SUB_BYTE_BITS
from verify.mil.program import Block, Constant, Program
from verify.weights.compare import WeightFault

MASKED = -1e4  # what a token's score gets for one that comes later
VERSION = 2  # of the blob storage
PERIOD = 10000.0  # of the slowest wave of an embedding, in radians


def wrong_constants(
    constants: Mapping[str, Constant], component: str, source: Checkpoint
) -> Iterator[WeightFault]:
    """The constants of a weight file, by their names, that are not what these names mean.

    Raises:
        InputError: the weight file cannot be read.
    """
    for name, constant in constants.items():
        dtype = NUMPY_DTYPES[constant.type.dtype]
        wanted = _expected(name, constant.type.shape, component, source)
        if wanted is None:
            text = f"{constant.type}, which nothing asks for"
            yield WeightFault(name, None, "no such constant", text)
            continue
        expected = np.broadcast_to(wanted, constant.type.shape).astype(dtype).reshape(-1)
        found, bits = constant.array().reshape(-1), np.dtype(f"u{dtype.itemsize}")
        differs = found.view(bits) != expected.view(bits)
        if differs.any():
            at = int(np.argmax(differs))
            index = tuple(int(i) for i in np.unravel_index(at, constant.type.shape))
            wanted_text, text = (f"{float(values[at]):.9g}" for values in (expected, found))
            yield WeightFault(name, index, wanted_text, text, int(np.count_nonzero(differs)))


def _expected(
    name: str, shape: tuple[int, ...], component: str, source: Checkpoint
) -> np.ndarray | None:
    """What a constant of ours must be; None if there is none of this name and shape."""
    if name.startswith("zero"):
        return np.zeros(())
    if name.startswith("ones"):
        return np.ones(())
    kind = COMPONENTS[component].kind
    if name == "causal_mask" and kind == "text_encoder" and shape[-1] == shape[-2]:
        return np.triu(np.full(shape[-2:], MASKED), k=1)
    if kind == "unet" and len(shape) == 2:
        config, half = source.unet, shape[-1]
        if 2 * half in (config.channels[0], config.addition_time_embed_dim):
            # In the steps of diffusers' get_timestep_embedding; the exponential is exact.
            exponent = -math.log(PERIOD) * np.arange(half, dtype=np.float32)
            return np.exp((exponent / (half - config.freq_shift)).astype(np.float64))
    return None


def file_problem(program: Program) -> str:
    """What is wrong with the weight files as they lie on the disk, or nothing.

    Raises:
        InputError: a weight file cannot be read.
    """
    places: dict[str, dict[int, Constant]] = {}
    for constant in _constants(program.main):
        if constant.file is not None:
            places.setdefault(str(constant.file.path), {})[constant.offset] = constant
    if len(places) > 1:
        return f"there are {len(places)} of them"
    return next(map(_arrangement, places.values()), "")


def _arrangement(places: Mapping[int, Constant]) -> str:
    """Whether the blobs fill the file, each where the one before it ends."""
    file = next(iter(places.values())).file
    assert file is not None
    data = file.mapped()
    if data[:HEADER].tobytes() != struct.pack("<II56x", len(places), VERSION):
        count = int(data[:4].view("<u4")[0])
        return f"its header says {count:,} blobs, the program has {len(places):,}"
    end = HEADER
    for offset, constant in sorted(places.items()):
        type_, at = constant.type, -(-end // HEADER) * HEADER
        start, size = file.check(offset, type_.dtype, type_.shape)
        if offset != at or start != offset + HEADER:
            return f"the blob at {offset} is expected at {at}, and its values behind it"
        if data[end:offset].any():
            return f"there is something before the blob at {offset}"
        record = data[offset:start]
        bits = math.prod(type_.shape) * SUB_BYTE_BITS.get(type_.dtype, 0)
        unused = 8 * size - bits if bits else 0
        end = start + size
        if record[24:].tobytes() != unused.to_bytes(HEADER - 24, "little"):
            return f"the record of the blob at {offset} says more than it should"
    return "" if end == data.size else f"it goes on for {data.size - end:,} bytes behind its blobs"


def _constants(block: Block) -> Iterator[Constant]:
    for op in block.ops:
        yield from op.attributes.values()
        for values in op.inputs.values():
            yield from (value for value in values if isinstance(value, Constant))
