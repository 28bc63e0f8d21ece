"""What each kind of LoRA does to a weight, row by row, in float32.

A weight of any shape is a matrix here: [outputs, columns], where a convolution's columns are its
inputs × kernel. An `Operation` gets some rows of it at a time, in order from the first, so that no
weight is ever whole in memory but for BOFT's.
Sources: KohakuBlueleaf/LyCORIS 4.1.3 (Apache-2.0), `lycoris/functional` and `lycoris/modules`;
huggingface/peft 0.21.2 `tuners/lora`. They are the oracles of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convert.checkpoint.tensors import Tensor


class Operation(Protocol):
    """A change of a weight, given to it in blocks of rows, each once and in order."""

    @property
    def rows(self) -> int:
        """The number of rows that a block must have a multiple of."""

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """The changed rows.

        Args:
            weight: [n, columns] float32, whose memory may be written to.
            start: the number of the first row in the whole weight.
        """


class Delta(Protocol):
    """What a LoRA adds to a weight."""

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """The rows to add, [n, columns], to these of the weight; valid until the next call."""


class RowReader:
    """The rows of a tensor, in float32, in order."""

    def __init__(self, tensor: Tensor, columns: int) -> None:
        self._columns = columns
        # Where float16 has all values: half the memory traffic, and widened where the rows go.
        narrow = tensor.dtype in ("F16", "F8_E4M3", "F8_E5M2")
        self._chunks = tensor.chunks(np.float16 if narrow else np.float32)
        self._rest = np.empty(0, np.float32)
        self._rows = np.empty((0, columns), np.float32)

    def read(self, count: int) -> np.ndarray:
        """The next `count` rows, [count, columns]; valid until the next call."""
        if len(self._rows) < count:
            self._rows = np.empty((count, self._columns), np.float32)
        out = self._rows[:count]
        flat, done = out.reshape(-1), 0
        while done < flat.size:
            if not self._rest.size:
                self._rest = next(self._chunks)
            part = self._rest[: flat.size - done]
            widen(part, flat[done : done + part.size])
            self._rest = self._rest[part.size :]
            done += part.size
        return out


_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def widen(values: np.ndarray, out: np.ndarray) -> None:
    """Write float16 or float32 values to `out` (float32); by a table, faster than numpy's cast."""
    if values.dtype == np.float16:
        np.take(_HALVES, values.view(np.uint16), out=out, mode="clip")
    else:
        out[...] = values


@dataclass
class LowRank:
    """up · down: LoRA, and by its parts LoHa and LoKr; of one with a core, `down` has it in it."""

    up: np.ndarray  # [outputs, rank]
    down: np.ndarray  # [rank, columns]
    _buffer: np.ndarray | None = None

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Delta`."""
        if self._buffer is None or len(self._buffer) < len(weight):
            self._buffer = np.empty((len(weight), self.down.shape[1]), np.float32)
        out = self._buffer[: len(weight)]
        return np.matmul(self.up[start : start + len(weight)], self.down, out=out)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers."""
        product: np.ndarray = self.up[rows] @ self.down
        return product

    def joined(self, other: LowRank) -> LowRank:
        """Their sum, which costs one product instead of two."""
        up = np.concatenate([self.up, other.up], axis=1)
        return LowRank(up, np.concatenate([self.down, other.down]))


@dataclass
class Hadamard:
    """factor · one ⊙ other: LoHa."""

    one: LowRank
    other: LowRank
    factor: float

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Delta`."""
        out = self.one(weight, start)
        out *= self.other(weight, start)
        out *= np.float32(self.factor)
        return out


@dataclass
class Kronecker:
    """factor · one ⊗ other: LoKr. Row p·b + q of the product is row p of one ⊗ row q of other."""

    one: np.ndarray  # [a, c]
    other: np.ndarray | LowRank  # [b, d · kernel]
    factor: float

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Delta`."""
        count = len(self.other.up if isinstance(self.other, LowRank) else self.other)
        p, q = np.divmod(np.arange(start, start + len(weight)), count)
        other = self.other.of_rows(q) if isinstance(self.other, LowRank) else self.other[q]
        one = self.one[p] * np.float32(self.factor)
        return (one[:, :, None] * other[:, None, :]).reshape(len(weight), -1)


@dataclass
class Generalized:
    """factor · (W · a1 · a2 + b1 · b2): GLoRA, where the product with W is over its inputs."""

    a1: np.ndarray  # [inputs, rank]
    a2: np.ndarray  # [rank, inputs]
    b: LowRank
    factor: float

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Delta`."""
        n, inputs = len(weight), len(self.a1)
        by_input = weight.reshape(n, inputs, -1).transpose(0, 2, 1)  # [n, kernel, inputs]
        product = ((by_input @ self.a1) @ self.a2).transpose(0, 2, 1).reshape(n, -1)
        product += self.b(weight, start)
        product *= np.float32(self.factor)
        return product


@dataclass
class Stored:
    """factor · a tensor of the file: `diff` and its kin."""

    reader: RowReader
    factor: float

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Delta`."""
        rows = self.reader.read(len(weight))
        rows *= np.float32(self.factor)
        return rows


@dataclass
class Add:
    """W + Δ."""

    delta: Delta
    rows: int = 1

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        weight += self.delta(weight, start)
        return weight


@dataclass
class Replace:
    """Another weight in W's place: `set_weight`."""

    reader: RowReader
    rows: int = 1

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        return self.reader.read(len(weight))


@dataclass
class Scale:
    """W with its rows ([outputs, 1]) or columns ([columns]) scaled: (IA)³."""

    factors: np.ndarray
    is_of_rows: bool
    rows: int = 1

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        weight *= self.factors[start : start + len(weight)] if self.is_of_rows else self.factors
        return weight


_TINY = np.float32(np.finfo(np.float32).eps)  # what LyCORIS adds to norms


@dataclass
class Decompose:
    """V · (s·(m ÷ ‖V‖ − 1) + 1), V = W + Δ: DoRA, the norms of outputs or of inputs.

    Args:
        magnitudes: m, of outputs ([outputs]) or of inputs ([inputs]).
        norms: of inputs, [inputs], from all of V; None for those of outputs, which a row has in it.
    """

    delta: Delta
    magnitudes: np.ndarray
    strength: float
    is_of_outputs: bool
    norms: np.ndarray | None = None
    rows: int = 1

    def unscaled(self, weight: np.ndarray, start: int) -> np.ndarray:
        """V."""
        weight += self.delta(weight, start)
        return weight

    def squares(self, weight: np.ndarray, start: int) -> np.ndarray:
        """What these rows of V add to the squares of the norms of inputs, [inputs] float64."""
        v = self.unscaled(weight, start)
        sums = np.einsum("oc,oc->c", v, v, dtype=np.float64)
        total: np.ndarray = sums.reshape(len(self.magnitudes), -1).sum(1)
        return total

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        v, strength = self.unscaled(weight, start), np.float32(self.strength)
        if self.is_of_outputs:
            norms = np.linalg.norm(v, axis=1) + _TINY
            factors = strength * (self.magnitudes[start : start + len(v)] / norms - 1) + 1
            v *= factors[:, None]
            return v
        assert self.norms is not None, "the norms of inputs come from a pass of their own"
        factors = strength * (self.magnitudes / (self.norms + _TINY) - 1) + 1
        inputs = v.reshape(len(v), len(factors), -1)
        inputs *= factors[:, None]
        return v


def rotations(blocks: np.ndarray, constraint: float) -> np.ndarray:
    """The rotations that skew-symmetric blocks stand for, by Cayley's transform.

    Args:
        blocks: [..., b, b] float32, of which B − Bᵀ counts.
        constraint: the greatest norm of all of them together; 0 for none.

    Returns:
        (I + Q)(I − Q)⁻¹, [..., b, b] float32, computed in float64.
    """
    q = blocks.astype(np.float64)
    q = q - np.swapaxes(q, -1, -2)
    norm = np.linalg.norm(q) + 1e-8
    if 0 < constraint < norm:
        q *= constraint / norm
    identity = np.eye(q.shape[-1])
    # X (I − Q) = I + Q, solved for Xᵀ: I − Q is never singular, Q's eigenvalues being imaginary
    solved = np.linalg.solve(np.swapaxes(identity - q, -1, -2), np.swapaxes(identity + q, -1, -2))
    found: np.ndarray = np.swapaxes(solved, -1, -2).astype(np.float32)
    return found


@dataclass
class Rotate:
    """Blocks of outputs rotated, each by itself: OFT."""

    blocks: np.ndarray  # [n, b, b], the strength in it
    rescale: np.ndarray | None  # [outputs, 1]

    @property
    def rows(self) -> int:
        """Those of a block."""
        return self.blocks.shape[-1]

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        first, count = start // self.rows, len(weight) // self.rows
        turned = np.swapaxes(self.blocks[first : first + count], 1, 2)
        out: np.ndarray = (turned @ weight.reshape(count, self.rows, -1)).reshape(weight.shape)
        if self.rescale is not None:
            out *= self.rescale[start : start + len(weight)]
        return out


@dataclass
class Butterfly:
    """Outputs rotated in stages, each of which pairs those that lie twice as far apart: BOFT."""

    stages: np.ndarray  # [m, n, b, b], the strength in them
    rescale: np.ndarray | None  # [outputs, 1]

    @property
    def rows(self) -> int:
        """All of them."""
        return self.stages.shape[1] * self.stages.shape[2]

    def __call__(self, weight: np.ndarray, start: int) -> np.ndarray:
        """As `Operation`."""
        outputs, columns = weight.shape
        _, blocks, size, _ = self.stages.shape
        for number, stage in enumerate(self.stages):
            far = 2**number * (size // 2)
            pairs = weight.reshape(-1, 2, far, columns).swapaxes(1, 2)
            turned = stage @ pairs.reshape(blocks, size, columns)
            weight = turned.reshape(-1, far, 2, columns).swapaxes(1, 2).reshape(outputs, columns)
        if self.rescale is not None:
            weight = weight * self.rescale
        return weight
