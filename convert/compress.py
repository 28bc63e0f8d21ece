"""Compression of weights: which tensors, how, and their values as they are streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convert.palette import Histogram, Packer, Palette, fit, pack
from convert.quantize import Quantized, int4_per_block, int8_per_channel
from convert.tensors import Tensor
from convert.values import Bits

# coremltools leaves tensors below this alone, too: the palette would outweigh what it saves.
SMALLEST = 2048  # elements
PALETTES = ("8", "6", "4", "3", "2", "1")
INTEGERS = {"int8": 8, "int4": 4}  # int8 has a scale for each output channel, int4 for each block
METHODS = (*PALETTES, *INTEGERS)
BLOCK = 32  # input channels that share a scale in int4


@dataclass(frozen=True)
class Compression:
    """What happens to the weights of a component."""

    bits: Bits

    def method(self, tensor: Tensor) -> str | None:
        """What of `METHODS` is done to a tensor; None if it stays as it is.

        Weights of convolutions and linear layers are compressed, neither embeddings nor norms and
        biases: those are small, and every output depends on them.
        """
        is_weight = len(tensor.shape) > 1 and not tensor.name.endswith("_embedding.weight")
        if self.bits not in METHODS or not is_weight or tensor.size < SMALLEST:
            return None
        if self.bits == "int4" and tensor.shape[1] % BLOCK:
            return "int8"  # the first convolution, mostly: it has four input channels
        return str(self.bits)

    def stored_bytes(self, tensor: Tensor, width: int) -> int:
        """Bytes of the tensor in a weight file, records and padding included.

        Args:
            width: bytes of an element that is not compressed.
        """
        method = self.method(tensor)
        if method is None:
            return _record(tensor.size * width)
        if method in INTEGERS:
            bits = INTEGERS[method]
            scales = tensor.shape[0] * QuantizedTensor(tensor, bits).blocks
            return _record(tensor.size * bits // 8) + _record(2 * scales)
        bits = int(method)
        return _record(-(-tensor.size * bits // 8)) + _record(2 << bits)


NONE = Compression(Bits("16"))


class PalettizedTensor:
    """A tensor's look-up table and packed indices, from one palette fitted when it is needed.

    The tensor is read twice, in chunks: for its histogram, and for its indices.
    """

    def __init__(self, tensor: Tensor, bits: int) -> None:
        self.tensor, self.bits = tensor, bits
        self._palette: Palette | None = None

    @property
    def lut(self) -> _LUT:
        return _LUT(self)

    @property
    def indices(self) -> _Indices:
        return _Indices(self)

    def palette(self) -> Palette:
        """The palette; the same for every call, whatever the order."""
        if self._palette is None:
            histogram = Histogram()
            for chunk in self.tensor.chunks(np.float16):
                histogram.add(chunk)
            self._palette = fit(histogram, self.bits)
        return self._palette

    def forget(self) -> None:
        """Drop the palette; its tables would add up over a network's tensors."""
        self._palette = None


@dataclass(frozen=True)
class _Indices:
    of: PalettizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        palette, packer = self.of.palette(), Packer(self.of.bits)
        for chunk in self.of.tensor.chunks(np.float16):
            yield packer.add(palette.indices(chunk))
        yield packer.finish()


@dataclass(frozen=True)
class _LUT:
    of: PalettizedTensor

    def chunks(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        yield self.of.palette().lut
        self.of.forget()  # the indices come before the table, in the order of their names


class QuantizedTensor:
    """A tensor's integers and their scales; the tensor is read whole, twice."""

    def __init__(self, tensor: Tensor, bits: int) -> None:
        self.tensor, self.bits = tensor, bits

    @property
    def blocks(self) -> int:
        """Blocks in an output channel, each with a scale."""
        return self.tensor.shape[1] // BLOCK if self.bits == 4 else 1

    @property
    def data(self) -> _Data:
        return _Data(self)

    @property
    def scale(self) -> _Scale:
        return _Scale(self)

    def quantized(self) -> Quantized:
        """The integers and scales, in the checkpoint's shape."""
        weight = self.tensor.read(np.float16)
        return int4_per_block(weight, BLOCK) if self.bits == 4 else int8_per_channel(weight)


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
        yield self.of.quantized().scale.reshape(-1)


def _record(size: int) -> int:
    return -(-size // 64) * 64 + 64
