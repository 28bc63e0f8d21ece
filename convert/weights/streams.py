"""Compressed tensors as they are streamed: look-up tables and indices, integers and scales.

Each is a pair of sources for the weight file (`convert.weights.weight_file.Chunked`), whose values
are made when they are asked for: one tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convert.checkpoint.tensors import Tensor
from convert.lora.merge import MergedTensor
from convert.weights.compress import BLOCK
from convert.weights.integers import Quantized, int4_per_block, int8_per_channel
from convert.weights.palette import Histogram, Packer, Palette, fit, fit_groups, pack

PIECE = 2 << 20  # indices that are packed at once


class PalettizedTensor:
    """A tensor's look-up table and packed indices, from one palette fitted when it is needed.

    The tensor is needed twice, in chunks: for its histogram, and for its indices. So it is read
    twice, but merged only once: what LoRAs made of it is kept from the first time to the second.
    """

    def __init__(self, tensor: Tensor, bits: int) -> None:
        self.tensor, self.bits = tensor, bits
        self._palette: Palette | None = None
        self._merged: list[np.ndarray] = []

    @property
    def lut(self) -> _LUT:
        """The table, as the weight file stores it: float16 [2^bits]."""
        return _LUT(self)

    @property
    def indices(self) -> _Indices:
        """The packed indices, as the weight file stores them."""
        return _Indices(self)

    @property
    def groups(self) -> int:
        """How many palettes there are."""
        return 1

    def palette(self) -> Palette:
        """The palette; the same for every call, whatever the order."""
        if self._palette is None:
            histogram = Histogram()
            for chunk in self.tensor.chunks(np.float16):
                histogram.add(chunk)
                if isinstance(self.tensor, MergedTensor):
                    self._merged.append(chunk.copy())
            self._palette = fit(histogram, self.bits)
        return self._palette

    def values(self) -> Iterator[np.ndarray]:
        """The tensor as float16, in chunks, for the last time."""
        merged, self._merged = self._merged, []
        return iter(merged) if merged else self.tensor.chunks(np.float16)

    def forget(self) -> None:
        """Drop the palette; its tables would add up over a network's tensors."""
        self._palette, self._merged = None, []


@dataclass(frozen=True)
class _Indices:
    of: PalettizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        palette, packer = self.of.palette(), Packer(self.of.bits)
        for chunk in self.of.values():
            yield packer.add(palette.indices(chunk))
        yield packer.finish()


@dataclass(frozen=True)
class _LUT:
    of: PalettizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        yield self.of.palette().lut.astype(dtype, copy=False)
        self.of.forget()  # the indices come before the table, in the order of their names


class GroupedTensor:
    """A tensor with a palette for every `group_size` output channels; it is read whole."""

    def __init__(self, tensor: Tensor, bits: int, group_size: int) -> None:
        self.tensor, self.bits, self.group_size = tensor, bits, group_size
        self._lut: np.ndarray | None = None

    @property
    def lut(self) -> _GroupedLUT:
        """The tables of all groups, as the weight file stores them: float16 [groups, 2^bits]."""
        return _GroupedLUT(self)

    @property
    def indices(self) -> _GroupedIndices:
        """The packed indices of all groups, as the weight file stores them."""
        return _GroupedIndices(self)

    @property
    def groups(self) -> int:
        """How many palettes there are."""
        return self.tensor.shape[0] // self.group_size

    def fit(self) -> np.ndarray:
        """The indices, uint8 in the tensor's shape; the tables are kept for `take_lut`."""
        palettes = fit_groups(self.tensor.read(np.float16), self.bits, self.group_size)
        self._lut = palettes.lut
        return palettes.indices

    def take_lut(self) -> np.ndarray:
        """The tables, float16 [groups, 2^bits]; they are not kept any longer."""
        if self._lut is None:
            self.fit()
        lut, self._lut = self._lut, None
        assert lut is not None
        return lut


@dataclass(frozen=True)
class _GroupedIndices:
    of: GroupedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        indices, packer = self.of.fit().reshape(-1), Packer(self.of.bits)
        for start in range(0, len(indices), PIECE):
            yield packer.add(indices[start : start + PIECE])
        yield packer.finish()


@dataclass(frozen=True)
class _GroupedLUT:
    of: GroupedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        yield self.of.take_lut().reshape(-1).astype(dtype, copy=False)


class QuantizedTensor:
    """A tensor's integers and their scales; it is read whole."""

    def __init__(self, tensor: Tensor, bits: int) -> None:
        self.tensor, self.bits = tensor, bits
        self._scale: np.ndarray | None = None

    @property
    def blocks(self) -> int:
        """Blocks in an output channel, each with a scale."""
        return self.tensor.shape[1] // BLOCK if self.bits == 4 else 1

    @property
    def data(self) -> _Data:
        """The integers, packed as the weight file stores them."""
        return _Data(self)

    @property
    def scale(self) -> _Scale:
        """The scales, as the weight file stores them: float16."""
        return _Scale(self)

    def quantized(self) -> Quantized:
        """The integers and scales, in the checkpoint's shape; these are kept for `take_scale`."""
        weight = self.tensor.read(np.float16)
        found = int4_per_block(weight, BLOCK) if self.bits == 4 else int8_per_channel(weight)
        self._scale = found.scale
        return found

    def take_scale(self) -> np.ndarray:
        """The scales, which are not kept any longer."""
        scale, self._scale = self._scale, None
        return self.quantized().scale if scale is None else scale


@dataclass(frozen=True)
class _Data:
    of: QuantizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        data = self.of.quantized().data
        yield pack(data, 4) if self.of.bits == 4 else data.reshape(-1)


@dataclass(frozen=True)
class _Scale:
    of: QuantizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        yield self.of.take_scale().reshape(-1).astype(dtype, copy=False)
