"""Safetensors files of any size, written tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.files.dtypes import WIDTHS
from convert.process.progress import Advance, silent


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to write: what stands in the header, and its values in blocks when it is its turn.

    Attributes:
        dtype: as safetensors spells it.
        blocks: makes the elements, in order, flat and of that dtype; a block is valid until the
            next one is asked for.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return WIDTHS[self.dtype] * math.prod(self.shape)


def write_safetensors(
    path: Path, tensors: Mapping[str, StreamedTensor], *, advance: Advance = silent
) -> None:
    """Write a new file whose tensors lie in it in this order.

    Args:
        advance: called with the number of bytes written since the last call.

    Raises:
        OSError: it cannot be written, or is there.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        offsets = [position, end]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for block in tensor.blocks():
                file.write(block.data)
                advance(block.nbytes)
