"""The three attention implementations over [B, C, 1, S] tensors, as Apple's package has them.

`original` suits the GPU; `split_einsum` cuts the heads apart for the Neural Engine
(https://machinelearning.apple.com/research/neural-engine-transformers), and `split_einsum_v2`
also cuts the queries into chunks. An app tells them apart by the `einsum` ops in the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from convert.values import QUERY_CHUNK

if TYPE_CHECKING:  # `plan` counts ops, and has no time to load coremltools
    from coremltools.converters.mil.mil import Var

    from convert.networks.graph import Module

EQUATION = "nchw,nwhu->nchu"


def original(m: Module, q: Var, k: Var, v: Var, heads: int) -> Var:
    """All heads in one batched `matmul`: q [B, C, 1, S], k and v [B, C, 1, T] → [B, C, 1, S]."""
    batch, channels, _, length = q.shape
    size = channels // heads
    q, k, v = (m.emit("reshape", x=x, shape=[batch, heads, size, x.shape[3]]) for x in (q, k, v))
    weights = m.emit("matmul", x=q, y=k, transpose_x=True, transpose_y=False)  # [B, H, S, T]
    weights = m.emit("mul", x=weights, y=size**-0.5)
    weights = m.emit("softmax", x=weights, axis=-1)
    out = m.emit("matmul", x=v, y=weights, transpose_x=False, transpose_y=True)  # [B, H, C/H, S]
    return m.emit("reshape", x=out, shape=[batch, channels, 1, length])


def split_einsum(m: Module, q: Var, k: Var, v: Var, heads: int) -> Var:
    """Head by head, two `einsum`s each; shapes as `original`."""
    return _split(m, q, k, v, heads, chunk=q.shape[3])


def split_einsum_v2(m: Module, q: Var, k: Var, v: Var, heads: int) -> Var:
    """As `split_einsum`, with at most 512 queries at a time; the last chunk may be shorter."""
    return _split(m, q, k, v, heads, chunk=QUERY_CHUNK)


def _split(m: Module, q: Var, k: Var, v: Var, heads: int, chunk: int) -> Var:
    size, length = q.shape[1] // heads, q.shape[3]
    starts = range(0, length, chunk)
    queries = [_slice(m, q, 1, h * size, size) for h in range(heads)]  # [B, C/H, 1, S] · H
    if len(starts) > 1:
        chunks = [[_slice(m, x, 3, at, min(chunk, length - at)) for at in starts] for x in queries]
    else:
        chunks = [[x] for x in queries]
    k = m.emit("transpose", x=k, perm=[0, 3, 2, 1])  # [B, T, 1, C]
    keys = [_slice(m, k, 3, h * size, size) for h in range(heads)]  # [B, T, 1, C/H] · H
    values = [_slice(m, v, 1, h * size, size) for h in range(heads)]  # [B, C/H, 1, T] · H
    weights = [
        [
            m.emit(
                "mul",
                x=m.emit("einsum", values=[key, query], equation=EQUATION),  # [B, T, 1, S]
                y=size**-0.5,
            )
            for query in parts
        ]
        for key, parts in zip(keys, chunks, strict=True)
    ]
    weights = [[m.emit("softmax", x=part, axis=1) for part in parts] for parts in weights]
    out = [
        [m.emit("einsum", values=[value, part], equation=EQUATION) for part in parts]
        for value, parts in zip(values, weights, strict=True)
    ]  # [B, C/H, 1, S] · H
    merged = [_concat(m, parts, axis=3) if len(parts) > 1 else parts[0] for parts in out]
    return _concat(m, merged, axis=1) if len(merged) > 1 else merged[0]


def _slice(m: Module, x: Var, axis: int, start: int, length: int) -> Var:
    begin, end, mask = [0, 0, 0, 0], list(x.shape), [True] * 4
    begin[axis], end[axis], mask[axis] = start, start + length, False
    return m.emit("slice_by_index", x=x, begin=begin, end=end, end_mask=mask)


def _concat(m: Module, values: list[Var], axis: int) -> Var:
    return m.emit("concat", values=values, axis=axis, interleave=False)


ATTENTION: dict[str, Callable[[Module, Var, Var, Var, int], Var]] = {
    "original": original,
    "split_einsum": split_einsum,
    "split_einsum_v2": split_einsum_v2,
}


@cache
def ops_within(attention: str, heads: int, queries: int) -> int:
    """How many ops an attention is made of, without constants: counted as it makes them.

    Args:
        attention: a key of `ATTENTION`.
        queries: S, of which `split_einsum_v2` makes chunks.
    """
    counter: Any = _Counter((1, heads, 1, queries))
    ATTENTION[attention](counter, counter, counter, counter, heads)
    return int(counter.count)


class _Counter:
    """A module that counts what it is told to emit, and the Vars that come of it.

    An attention looks at the shapes of q, k and v alone, and makes no weight.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.count = shape, 0

    def emit(self, op: str, **inputs: Any) -> _Counter:
        self.count += 1
        return self
