"""Two graphs of one network at two sizes, op by op: all that is not as the size map says.

`shipped` is the program that is judged, `small` the one that it is compared with, whose numbers are
checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convert.errors import InputError
from verify.equivalence.nodes import Aspect, Difference, Held, Node, Operand, OpGraph, Output
from verify.equivalence.sizes import SizeMap
from verify.mil import Constant, Program, TensorType

CHUNK = 1 << 24  # bytes of two weights that are compared at a time


@dataclass
class SameWeights:
    """Whether two programs mean the same weights.

    By their places where both have one file, or where the caller knows that two files are equal;
    else by their bytes.

    Attributes:
        equal: pairs of files that are known to be equal.
    """

    equal: set[frozenset[Path]] = field(default_factory=set)

    def problem(self, shipped: Held, small: Held) -> str:
        """How two constants in weight files differ, or nothing."""
        one, other = shipped.constant, small.constant
        assert one.file is not None
        assert other.file is not None
        pair = frozenset((one.file.path, other.file.path))
        if pair not in self.equal and _is_one_file(*pair):
            self.equal.add(pair)
        if pair in self.equal:
            if one.offset == other.offset:
                return ""
            return f"is at {one.offset} of the weight file, expected {other.offset}"
        try:
            is_equal = _equal_bytes(one, other)
        except InputError as error:
            return f"cannot be read: {error.problem}"
        return "" if is_equal else "has other values than the one expected"


def compare(
    shipped: OpGraph, small: OpGraph, sizes: SizeMap, weights: SameWeights
) -> list[Difference]:
    """Every difference between two graphs of which `unlike` says that their ops are alike."""
    return list(_Comparison(shipped, small, sizes, weights).differences())


def compare_interfaces(shipped: Program, small: Program, sizes: SizeMap) -> Iterator[Difference]:
    """How the programs' interfaces differ, sizes aside."""
    for what in ("opset", "specification_version", "function"):
        found, wanted = getattr(shipped, what), getattr(small, what)
        if found != wanted:
            text = f"{what.replace('_', ' ')} is {found}, expected {wanted}"
            yield Difference("interface", "", text)
    for aside in shipped.aside:
        if aside not in small.aside:
            yield Difference("interface", "", f"has {aside}, which is not expected")
    for kind in ("inputs", "outputs"):
        features = {f.name: TensorType(f.dtype, f.shape) for f in getattr(shipped, kind)}
        expected = {f.name: TensorType(f.dtype, f.shape) for f in getattr(small, kind)}
        yield from _named(kind, features, expected, sizes)
    yield from _named("inputs", shipped.main.inputs, small.main.inputs, sizes)
    if shipped.main.outputs != small.main.outputs:
        text = f"gives {', '.join(shipped.main.outputs)}, expected {', '.join(small.main.outputs)}"
        yield Difference("interface", "", text)


def _named(
    kind: str, found: dict[str, TensorType], wanted: dict[str, TensorType], sizes: SizeMap
) -> Iterator[Difference]:
    if list(found) != list(wanted):
        text = f"{kind} are {', '.join(found)}, expected {', '.join(wanted)}"
        yield Difference("interface", "", text)
        return
    for name, type_ in found.items():
        expected = _at(wanted[name], sizes)
        if type_ != expected:
            text = f"{kind[:-1]} `{name}` is {type_}, expected {expected}"
            yield Difference("interface", "", text)


def _at(type_: TensorType, sizes: SizeMap) -> TensorType:
    """A type of the small program as it is in the shipped one."""
    return TensorType(type_.dtype, tuple(map(sizes.expected, type_.shape)))


def unlike(shipped: OpGraph, small: OpGraph) -> Difference | None:
    """The first op that the other graph does not have at its place; None if types are the same."""
    found, wanted = ([node.type for node in graph.nodes] for graph in (shipped, small))
    if found == wanted:
        return None
    same = 0
    while same < min(len(found), len(wanted)) and found[same] == wanted[same]:
        same += 1
    if len(found) == len(wanted) + 1 and found[same + 1 :] == wanted[same:]:
        node = shipped.nodes[_surplus(shipped, small, same)]
        return Difference("ops", str(node), "is one op more than expected")
    if len(wanted) == len(found) + 1 and wanted[same + 1 :] == found[same:]:
        node = small.nodes[_surplus(small, shipped, same)]
        return Difference("ops", str(node), "is missing")
    counts = f"{len(found):,} ops, expected {len(wanted):,}"
    if same == len(found):
        return Difference("ops", str(small.nodes[same]), f"is missing at the end: {counts}")
    node = shipped.nodes[same]
    if same == len(wanted):
        return Difference("ops", str(node), f"is more than expected: {counts}")
    also = "" if len(found) == len(wanted) else f" ({counts})"
    return Difference("ops", str(node), f"stands where {small.nodes[same]} is expected{also}")


def _surplus(longer: OpGraph, shorter: OpGraph, at: int) -> int:
    """Which op is the surplus one: of a run of one type that ends at `at`, one of a new name."""
    names = {node.name for node in shorter.nodes}
    start = at
    while start and longer.nodes[start - 1].type == longer.nodes[at].type:
        start -= 1
    fresh = (n for n in range(start, at + 1) if longer.nodes[n].name not in names)
    return next(fresh, at)


@dataclass
class _Comparison:
    shipped: OpGraph
    small: OpGraph
    sizes: SizeMap
    weights: SameWeights

    def differences(self) -> Iterator[Difference]:
        for node, other in zip(self.shipped.nodes, self.small.nodes, strict=True):
            yield from self.node(node, other)
        for name, reference in self.shipped.outputs.items():
            wanted = self.small.outputs.get(name)
            if wanted is not None and not self.same_place(reference, wanted):
                what = f"output `{name}` is {self.shipped.name(reference)}"
                yield Difference("ops", "", f"{what}, expected {self.small.name(wanted)}")
        for name in self.shipped.unused:
            if name not in self.small.unused:
                yield Difference("ops", f"const `{name}`", "is taken by no op")

    def node(self, node: Node, other: Node) -> Iterator[Difference]:
        def difference(kind: Aspect, what: str) -> Difference:
            return Difference(kind, str(node), what)

        for name in node.arguments.keys() ^ other.arguments.keys():
            has = "takes" if name in node.arguments else "takes no"
            yield difference("ops", f"{has} `{name}`, unlike what is expected")
        for name in node.attributes.keys() ^ other.attributes.keys():
            has = "has" if name in node.attributes else "has no"
            yield difference("constants", f"{has} attribute `{name}`, unlike what is expected")
        for name in node.arguments.keys() & other.arguments.keys():
            yield from self.argument(node, name, node.arguments[name], other.arguments[name])
        for name in node.attributes.keys() & other.attributes.keys():
            held = (Held("", constants[name]) for constants in (node.attributes, other.attributes))
            yield from self.constant(node, name, *held)
        if len(node.outputs) != len(other.outputs):
            text = f"gives {len(node.outputs)} values, expected {len(other.outputs)}"
            yield difference("ops", text)
        for found, wanted in zip(node.outputs, other.outputs, strict=False):
            if found.dtype != wanted.dtype:
                yield difference("types", f"gives {found}, expected {_at(wanted, self.sizes)}")
            yield from self.numbers(node, "its shape", found.shape, wanted.shape)

    def argument(
        self,
        node: Node,
        name: str,
        found: Sequence[Operand],
        wanted: Sequence[Operand],
    ) -> Iterator[Difference]:
        if len(found) != len(wanted):
            text = f"`{name}` has {len(found)} values, expected {len(wanted)}"
            yield Difference("ops", str(node), text)
            return
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            which = f"{name}[{i}]" if len(found) > 1 else name
            if isinstance(one, Held) and isinstance(other, Held):
                yield from self.constant(node, which, one, other)
            elif not self.same_place(one, other):
                expected = self.expected_name(other)
                text = f"`{which}` is {self.shipped.name(one)}, expected {expected}"
                yield Difference("ops", str(node), text)

    def same_place(self, one: Operand, other: Operand) -> bool:
        """Whether two references are to the same place of either graph; False of constants."""
        return not isinstance(one, Held) and one == other

    def expected_name(self, reference: Operand) -> str:
        """What the shipped program calls what stands at this place."""
        if isinstance(reference, Output):
            return self.shipped.name(reference)
        return self.small.name(reference)

    def constant(self, node: Node, name: str, found: Held, wanted: Held) -> Iterator[Difference]:
        one, other = found.constant, wanted.constant
        called = f"`{name}`"

        def difference(what: str) -> Difference:
            return Difference("constants", str(node), f"{called} {what}")

        if one.type.dtype != other.type.dtype:
            yield difference(f"is {one.type}, expected {_at(other.type, self.sizes)}")
            return
        if one.type.shape != other.type.shape:
            shape = f"the shape of {called}"
            yield from self.numbers(node, shape, one.type.shape, other.type.shape)
            if one.type.shape != _at(other.type, self.sizes).shape:
                return
        if one.file is not None and other.file is not None:
            if found.name != wanted.name:
                yield difference(f"is expected to be `{wanted.name}`")
            elif problem := self.weights.problem(found, wanted):
                yield difference(problem)
        elif (one.file is None) != (other.file is None):
            found_in, wanted_in = (
                "the program" if constant.file is None else "the weight file"
                for constant in (one, other)
            )
            yield difference(f"is in {found_in}, expected in {wanted_in}")
        else:
            yield from self.values(node, called, one.array(), other.array())

    def values(
        self, node: Node, called: str, found: np.ndarray, wanted: np.ndarray
    ) -> Iterator[Difference]:
        """Two values that are written in the programs: integers by the map, others bit for bit."""
        if found.dtype.kind in "iu" and found.size == wanted.size:
            yield from self.numbers(node, called, _flat(found), _flat(wanted))
        elif found.dtype != wanted.dtype or found.shape != wanted.shape:
            text = f"{called} is {_shown(found)}, expected {_shown(wanted)}"
            yield Difference("constants", str(node), text)
        elif found.tobytes() != wanted.tobytes():
            pairs = zip(np.ndindex(found.shape), found.reshape(-1), wanted.reshape(-1), strict=True)
            index, one, other = next(p for p in pairs if p[1].tobytes() != p[2].tobytes())
            which = str(list(index)) if index else ""
            text = f"{called}{which} is {_shown(one)}, expected {_shown(other)}"
            yield Difference("constants", str(node), text)

    def numbers(
        self, node: Node, called: str, found: Sequence[int], wanted: Sequence[int]
    ) -> Iterator[Difference]:
        if len(found) != len(wanted):
            expected = list(map(self.sizes.expected, wanted))
            text = f"{called} is {list(found)}, expected {expected}"
            yield Difference("sizes", str(node), text)
            return
        for i, (number, small) in enumerate(zip(found, wanted, strict=True)):
            expected_number = self.sizes.expected(small)
            if number != expected_number:
                which = f"[{i}]" if len(found) > 1 else ""
                text = f"{called}{which} is {number}, expected {expected_number}"
                yield Difference("sizes", str(node), text + self.sizes.why(small))


def _flat(values: np.ndarray) -> list[int]:
    return [int(value) for value in values.reshape(-1)]


def _shown(value: np.ndarray | np.generic) -> str:
    """A value for a message, floats with all their digits; of large ones what they are."""
    if value.size > 8:
        return f"{value.dtype}{list(value.shape)}"
    return repr(value.item() if value.ndim == 0 else value.tolist())


def _is_one_file(one: Path, other: Path | None = None) -> bool:
    if other is None or one == other:
        return True
    return one.is_file() and other.is_file() and one.samefile(other)


def _equal_bytes(one: Constant, other: Constant) -> bool:
    (start, size), (start_2, size_2) = (
        c.file.check(c.offset, c.type.dtype, c.type.shape)
        for c in (one, other)
        if c.file is not None
    )
    if size != size_2:
        return False
    assert one.file is not None
    assert other.file is not None
    with one.file.path.open("rb") as left, other.file.path.open("rb") as right:
        left.seek(start)
        right.seek(start_2)
        for at in range(0, size, CHUNK):
            length = min(CHUNK, size - at)
            if left.read(length) != right.read(length):
                return False
    return True
