"""Chunks of queries are one attention where they tile the queries and are siblings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verify.equivalence.chunks import uncut, whole_attentions
from verify.equivalence.nodes import Held, Malformed, Operand, OpGraph, graph_of
from verify.mil import Block, Constant, Op, Program, TensorType

EQUATION = "nchw,nwhu->nchu"


def held(value: object) -> Constant:
    array = np.array(value)
    dtype = {"i": "int32", "b": "bool", "U": "string", "f": "fp16"}[array.dtype.kind]
    return Constant(TensorType(dtype, array.shape), array)


def attention(*bounds: tuple[int, int], queries: int = 1100, joined: int | None = None) -> Program:
    """One head over 77 tokens, cut at these bounds; uncut if there are none."""
    ops: list[Op] = []

    def emit(type_: str, shape: tuple[int, ...], **inputs: object) -> str:
        name = f"{type_}_{len(ops)}"
        given = {
            key: [v if isinstance(v, str | Constant) else held(v) for v in value]
            if isinstance(value, list)
            else [value if isinstance(value, str | Constant) else held(value)]
            for key, value in inputs.items()
        }
        ops.append(Op(type_, name, given, {}, [(name, TensorType("fp16", shape))]))
        return name

    parts = []
    for begin, end in bounds or ((0, queries),):
        size = end - begin
        query = "query"
        if bounds:
            query = emit(
                "slice_by_index", (2, 8, 1, size), x="query", begin=np.array([0, 0, 0, begin]),
                end=np.array([2, 8, 1, end]), end_mask=np.array([True, True, True, False]),
            )  # fmt: skip
        x = emit("einsum", (2, 77, 1, size), values=["key", query], equation=held(EQUATION))
        x = emit("mul", (2, 77, 1, size), x=x, y=0.25)
        x = emit("softmax", (2, 77, 1, size), x=x, axis=1)
        parts.append(emit("einsum", (2, 8, 1, size), values=["value", x], equation=held(EQUATION)))
    if bounds:
        total = joined or sum(end - begin for begin, end in bounds)
        emit("concat", (2, 8, 1, total), values=parts, axis=3, interleave=False)
    ops.append(
        Op("relu", "relu", {"x": [ops[-1].name]}, {}, [("out", TensorType("fp16", (2, 8, 1, 1)))])
    )
    inputs = {
        "query": TensorType("fp16", (2, 8, 1, queries)),
        "key": TensorType("fp16", (2, 77, 1, 8)),
        "value": TensorType("fp16", (2, 8, 1, 77)),
    }
    return Program(Path("p"), "CoreML7", 8, [], [], Block(inputs, ops, ["out"]))


TILES = ((0, 512), (512, 1024), (1024, 1100))


def told(graph: OpGraph) -> list[tuple[str, dict[str, list[object]], list[str]]]:
    """A graph without names of ops and identities of constants."""

    def value(operand: Operand) -> object:
        return operand.constant.item() if isinstance(operand, Held) else operand

    return [
        (
            node.type,
            {name: [*map(value, values)] for name, values in node.arguments.items()},
            [str(type_) for type_ in node.outputs],
        )
        for node in graph.nodes
    ]


def test_chunks_that_tile_are_the_whole() -> None:
    whole = graph_of(attention())
    assert told(whole_attentions(graph_of(attention(*TILES)))) == told(whole)
    assert told(whole_attentions(whole)) == told(whole)
    exact = ((0, 512), (512, 1024))
    assert told(whole_attentions(graph_of(attention(*exact, queries=1024)))) == told(
        graph_of(attention(queries=1024))
    )


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (((0, 512), (513, 1024), (1024, 1100)), "begins at query 513, expected 512: a gap"),
        (((0, 512), (511, 1023), (1023, 1100)), "begins at query 511, expected 512: an overlap"),
        (((0, 512), (512, 1024)), "ends at query 1024, expected 1100"),
        (((512, 1024), (0, 512), (1024, 1100)), "begins at query 512, expected 0"),
        (((0, 500), (500, 1100)), "has 500 queries, expected 512"),
        (((0, 512), (512, 1100)), "has 588 queries, expected 512"),
        (((0, 512), (512, 1024), (1024, 1200)), "ends at query 1200 of 1100"),
    ],
)
def test_chunks_that_do_not_tile_are_named(bounds: tuple[tuple[int, int], ...], why: str) -> None:
    with pytest.raises(Malformed, match=why):
        whole_attentions(graph_of(attention(*bounds)))


def spoiled(index: int, type_: str, **inputs: list[str | Constant]) -> Program:
    """Three chunks, with other inputs for one op of the second."""
    program = attention(*TILES)
    op = [o for o in program.ops if o.type == type_][index]
    op.inputs = {**op.inputs, **inputs}
    return program


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (spoiled(1, "mul", y=[held(0.5)]), "has another `y` than its sibling"),
        (spoiled(1, "softmax", axis=[held(2)]), "has another `axis` than its sibling"),
        (spoiled(2, "einsum", values=["value", "slice_by_index_5"]), "`values` is input `value`"),
        (spoiled(1, "softmax", x=["mul_2"]), "takes a chunk twice"),
        (spoiled(0, "relu", x=["softmax_8"]), "takes one chunk by itself"),
        (attention(*TILES, joined=1101), r"gives .*1101\], its chunks are .*1100\]"),
    ],
)
def test_chunks_that_are_no_siblings_are_named(program: Program, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        whole_attentions(graph_of(program))


def test_what_mixes_queries_is_no_chunk() -> None:
    program = attention(*TILES)
    for op in program.ops:
        if op.type == "softmax":
            op.inputs["axis"] = [held(3)]
    with pytest.raises(Malformed, match="no op that takes each query by itself"):
        whole_attentions(graph_of(program))


def test_too_many_queries_at_once_are_told() -> None:
    assert [d.what for d in uncut(graph_of(attention()))] == [
        "takes 1100 queries at once, a chunk has at most 512"
    ]
    assert not [*uncut(graph_of(attention(*TILES)))]
