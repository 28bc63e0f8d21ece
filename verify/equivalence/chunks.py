"""`split_einsum_v2` without its chunks: every attention as if it took all queries at once.

Queries do not see one another in an attention, so a concatenation of what it makes of slices that
tile the queries is what it makes of all of them. How many slices that takes depends on the size;
what stands here in their place does not. Nothing is assumed: slices have to tile the axis, and what
is made of each has to be the same, op for op.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from verify.artifact.graph import EINSUM
from verify.artifact.interface import QUERY_CHUNK
from verify.equivalence.nodes import (
    Aspect,
    Difference,
    Held,
    Malformed,
    Node,
    Operand,
    OpGraph,
    Output,
)
from verify.mil import Constant, TensorType

AXIS = 3  # of queries, in [B, C, 1, S] and in [B, T, 1, S]
SLICE = dict.fromkeys(("x", "begin", "end", "end_mask"), 1)  # what a slice of queries takes
JOIN = {"axis", "interleave"}  # what a concatenation of them takes beside the values
# The parameter, and the place in it, through which queries go on along the same axis.
CHUNKED = {"mul": ("x", 0), "softmax": ("x", 0), "einsum": ("values", 1)}


def whole_attentions(graph: OpGraph) -> OpGraph:
    """The graph with one attention in place of those over chunks of queries.

    Raises:
        Malformed: chunks that differ, or do not tile the queries, or are used elsewhere.
    """
    merger = _Merger(graph)
    for number, node in enumerate(graph.nodes):
        if _joins_queries(node):
            merger.merge(number, node)
    return merger.result()


def uncut(graph: OpGraph) -> Iterator[Difference]:
    """The attentions that take more queries at once than `split_einsum_v2` does."""
    for node in graph.nodes:
        shape = node.outputs[0].shape if node.type == "softmax" and node.outputs else ()
        if len(shape) == 4 and shape[AXIS] > QUERY_CHUNK:
            what = f"takes {shape[AXIS]} queries at once, a chunk has at most {QUERY_CHUNK}"
            yield Difference("ops", str(node), what)


def same_constant(one: Constant, other: Constant) -> bool:
    """Whether two constants of a program are the same, bit for bit or by their place."""
    if one.type != other.type:
        return False
    if one.file is None or other.file is None:
        return one.file is other.file and one.array().tobytes() == other.array().tobytes()
    return one.file.path == other.file.path and one.offset == other.offset


def _joins_queries(node: Node) -> bool:
    if node.type != "concat" or not node.outputs or len(node.outputs[0].shape) != 4:
        return False
    axis = node.value("axis")
    return axis is not None and axis.item() in (AXIS, AXIS - 4)


class _Merger:
    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.merged: dict[int, Node] = {}  # the first of each row of siblings, made whole
        self.dropped: dict[int, Node] = {}  # its siblings, and the slices
        self.instead: dict[int, Operand] = {}  # of a concatenation, what it joined
        self.lengths: tuple[int, ...] = ()  # of the chunks at hand

    def merge(self, number: int, node: Node) -> None:
        self.lengths = ()
        interleave = node.value("interleave")
        if node.arguments.keys() - JOIN != {"values"} or node.attributes or len(node.outputs) != 1:
            raise _malformed(node, "is no plain concatenation of queries")
        if interleave is None or interleave.item():
            raise _malformed(node, "does not join one chunk after another")
        found = self.whole(node.arguments.get("values", ()), node)
        if not isinstance(found, Output) or found.node not in self.merged:
            raise _malformed(node, "joins along the queries what is no chunk of them")
        (whole,) = self.merged[found.node].outputs
        if node.outputs != (whole,):
            raise _malformed(node, f"gives {node.outputs[0]}, its chunks are {whole}", "types")
        self.instead[number] = found

    def whole(self, parts: Sequence[Operand], user: Node) -> Operand:
        """What the parts are together, which are what `user` takes; or that they all are."""
        if not parts:
            raise _malformed(user, "joins nothing")
        if all(part == parts[0] for part in parts):
            return parts[0]
        rows = [p.node for p in parts if isinstance(p, Output) and p.index == 0]
        if len(set(rows)) != len(parts):
            raise _malformed(user, "takes a chunk twice, or not of each op that gives one")
        nodes = [self.graph.nodes[row] for row in rows]
        if all(node.type == "slice_by_index" for node in nodes):
            source = self.tiled(nodes)
            self.dropped |= dict(zip(rows, nodes, strict=True))
            return source
        self.merged[rows[0]] = self.together(nodes)
        self.dropped |= dict(zip(rows[1:], nodes[1:], strict=True))
        return Output(rows[0])

    def tiled(self, slices: Sequence[Node]) -> Operand:
        """What the slices are of; together they are all of it."""
        first = slices[0]
        for node in slices:
            if {name: len(values) for name, values in node.arguments.items()} != SLICE:
                raise _malformed(node, "is no plain slice of queries")
        source = first.arguments["x"][0]
        if any(node.arguments["x"][0] != source for node in slices):
            other = next(node for node in slices if node.arguments["x"][0] != source)
            raise _malformed(other, f"slices something else than its sibling {first}")
        size = self.graph.type(source)
        lengths, at = [], 0
        for node in slices:
            begin, end = _bounds(node, size.shape)
            if begin != at:
                what = "a gap" if begin > at else "an overlap"
                raise _malformed(node, f"begins at query {begin}, expected {at}: {what}")
            if end <= begin or end > size.shape[AXIS]:
                raise _malformed(node, f"ends at query {end} of {size.shape[AXIS]}")
            lengths.append(end - begin)
            _require_length(node, 0, size, end - begin)
            at = end
        if at != size.shape[AXIS]:
            raise _malformed(slices[-1], f"ends at query {at}, expected {size.shape[AXIS]}")
        for node, length in zip(slices, lengths, strict=True):
            wanted = QUERY_CHUNK if node is not slices[-1] else min(length, QUERY_CHUNK)
            if length != wanted:
                raise _malformed(node, f"has {length} queries, expected {wanted}")
        if self.lengths not in ((), tuple(lengths)):
            raise _malformed(first, "is cut otherwise than others of its attention")
        self.lengths = tuple(lengths)
        return source

    def together(self, nodes: Sequence[Node]) -> Node:
        """One op in place of those that do the same with each chunk."""
        first = nodes[0]
        for node in nodes[1:]:
            if (difference := _differ(first, node)) is not None:
                raise _malformed(node, f"{difference} than its sibling {first}")
        _require_by_query(first)
        parameter, place = CHUNKED[first.type]
        arguments = {name: list(values) for name, values in first.arguments.items()}
        for name, values in first.arguments.items():
            for i, value in enumerate(values):
                if (name, i) == (parameter, place):
                    parts = [node.arguments[name][i] for node in nodes]
                    arguments[name][i] = self.whole(parts, first)
                elif not isinstance(value, Held):
                    self.require_shared(name, i, nodes)
        if not self.lengths:
            raise _malformed(first, "is one of several that take the same queries")
        total = _with_length(first.outputs[0], sum(self.lengths))
        for node, length in zip(nodes, self.lengths, strict=True):
            _require_length(node, 0, total, length)
        given = {name: tuple(values) for name, values in arguments.items()}
        return replace(first, arguments=given, outputs=(total,))

    def require_shared(self, name: str, place: int, nodes: Sequence[Node]) -> None:
        wanted = nodes[0].arguments[name][place]
        for node in nodes[1:]:
            if (found := node.arguments[name][place]) != wanted:
                found_name, name_ = self.graph.name(found), self.graph.name(wanted)
                raise _malformed(
                    node, f"`{name}` is {found_name}, of its sibling {nodes[0]} {name_}"
                )

    def result(self) -> OpGraph:
        """The graph with all that was merged."""
        numbers: dict[int, int] = {}
        nodes: list[Node] = []

        def moved(reference: Operand, user: object) -> Operand:
            if isinstance(reference, Held):
                return reference
            while isinstance(reference, Output) and reference.node in self.instead:
                reference = self.instead[reference.node]
            if not isinstance(reference, Output):
                return reference
            if reference.node in self.dropped:
                what = f"takes one chunk by itself, {self.dropped[reference.node]}"
                raise Malformed(Difference("ops", str(user), what))
            return Output(numbers[reference.node], reference.index)

        for number, node in enumerate(self.graph.nodes):
            if number in self.instead or number in self.dropped:
                continue
            node = self.merged.get(number, node)
            arguments = {
                name: tuple([moved(value, node) for value in values])
                for name, values in node.arguments.items()
            }
            numbers[number] = len(nodes)
            nodes.append(Node(node.type, node.name, arguments, node.attributes, node.outputs))
        outputs = {name: moved(value, "") for name, value in self.graph.outputs.items()}
        return replace(self.graph, nodes=nodes, outputs=outputs)


def _bounds(node: Node, shape: tuple[int, ...]) -> tuple[int, int]:
    """Where a slice of queries begins and ends; it takes all of every other axis."""
    begin, end, mask = (node.value(name) for name in ("begin", "end", "end_mask"))
    if begin is None or end is None or mask is None or node.attributes:
        raise _malformed(node, "is no plain slice of queries")
    first, last = begin.item(), end.item()
    if mask.item() != [True, True, True, False] or len(first) != 4 or len(last) != 4:
        raise _malformed(node, "is a slice along other axes than that of queries")
    if first[:AXIS] != [0] * AXIS or last[:AXIS] != list(shape[:AXIS]):
        raise _malformed(node, f"takes {first} to {last} of {list(shape)}")
    return first[AXIS], last[AXIS]


def _differ(one: Node, other: Node) -> str | None:
    """In what two siblings differ beside what they take; None if in nothing."""
    if one.type != other.type:
        return "is another op"
    if {n: len(v) for n, v in one.arguments.items()} != {
        n: len(v) for n, v in other.arguments.items()
    } or one.attributes.keys() != other.attributes.keys():
        return "takes other arguments"
    for name, values in one.arguments.items():
        for a, b in zip(values, other.arguments[name], strict=True):
            if isinstance(a, Held) != isinstance(b, Held):
                return f"has another `{name}`"
            if (
                isinstance(a, Held)
                and isinstance(b, Held)
                and not same_constant(a.constant, b.constant)
            ):
                return f"has another `{name}`"
    for name, constant in one.attributes.items():
        if not same_constant(constant, other.attributes[name]):
            return f"has another `{name}`"
    return None


def _require_by_query(node: Node) -> None:
    """Raise unless what an op gives for a query depends on that query alone."""
    axis, equation, y = (node.value(name) for name in ("axis", "equation", "y"))
    is_known = {
        "mul": y is not None and not y.type.shape,
        "softmax": axis is not None and axis.item() not in (AXIS, AXIS - 4),
        "einsum": equation is not None and equation.item() == EINSUM,
    }
    if not is_known.get(node.type, False):
        raise _malformed(node, "is no op that takes each query by itself")


def _with_length(type_: TensorType, length: int) -> TensorType:
    return replace(type_, shape=(*type_.shape[:AXIS], length, *type_.shape[AXIS + 1 :]))


def _require_length(node: Node, index: int, whole: TensorType, length: int) -> None:
    found, wanted = node.outputs[index], _with_length(whole, length)
    if found != wanted:
        raise _malformed(node, f"gives {found}, expected {wanted}", "types")


def _malformed(node: Node, what: str, kind: Aspect = "ops") -> Malformed:
    return Malformed(Difference(kind, str(node), what))
