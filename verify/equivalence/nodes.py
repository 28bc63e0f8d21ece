"""A program as a graph of ops whose arguments are places, not names.

A value is called after the op that gives it, or the function's input; a constant stands where it
is used. So names, and constants that happen to be shared at one size and not at another, make no
difference between two programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from verify.mil import Constant, Op, Program, TensorType

Aspect = Literal["interface", "ops", "constants", "sizes", "types"]


@dataclass(frozen=True)
class Difference:
    """Where a program is not what it should be.

    Attributes:
        kind: which of the level's questions it answers.
        op: the type and the name of the op; empty for the function itself.
        what: what was found and what was expected.
    """

    kind: Aspect
    op: str
    what: str

    def __str__(self) -> str:
        return f"{self.op}: {self.what}" if self.op else self.what


class Malformed(Exception):
    """A program that is no graph, or no chunked one: compared with nothing."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


@dataclass(frozen=True)
class Given:
    """An input of the function."""

    name: str


@dataclass(frozen=True)
class Output:
    """What an op gives."""

    node: int
    index: int = 0


@dataclass(frozen=True, eq=False)
class Held:
    """A constant; one that is written where it is used has no name."""

    name: str
    constant: Constant


Operand = Given | Output | Held


@dataclass(frozen=True)
class Node:
    """An op; `arguments` are its inputs, in which what `const` ops hold is at its place."""

    type: str
    name: str
    arguments: Mapping[str, tuple[Operand, ...]]
    attributes: Mapping[str, Constant]
    outputs: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"{self.type} `{self.name}`"

    @property
    def references(self) -> Iterator[Operand]:
        """All that it takes, whatever for."""
        for values in self.arguments.values():
            yield from values

    def value(self, parameter: str) -> Constant | None:
        """The constant that a parameter is, whether as input or as attribute; None if it is none.

        What is kept in a weight file is no value of this kind.
        """
        (found, *more) = self.arguments.get(parameter) or (None,)
        constant = found.constant if isinstance(found, Held) else self.attributes.get(parameter)
        return constant if constant is not None and constant.file is None and not more else None


@dataclass(frozen=True)
class OpGraph:
    """A function: its ops without `const`, and what it takes and gives."""

    inputs: Mapping[str, TensorType]
    nodes: Sequence[Node]
    outputs: Mapping[str, Operand]
    unused: tuple[str, ...] = ()  # constants that no op takes

    def name(self, reference: Operand) -> str:
        """What a reference is called in a message."""
        if isinstance(reference, Output):
            node = self.nodes[reference.node]
            which = f"output {reference.index} of " if len(node.outputs) > 1 else ""
            return f"{which}{node}"
        if isinstance(reference, Given):
            return f"input `{reference.name}`"
        return f"constant `{reference.name}`" if reference.name else "a constant"

    def type(self, reference: Operand) -> TensorType:
        """The declared type of a value."""
        if isinstance(reference, Output):
            return self.nodes[reference.node].outputs[reference.index]
        if isinstance(reference, Given):
            return self.inputs[reference.name]
        return reference.constant.type


def graph_of(program: Program) -> OpGraph:
    """The graph of a program.

    Raises:
        Malformed: a name is given twice, or taken before it is given, or an op holds blocks.
    """
    known: dict[str, Operand] = {name: Given(name) for name in program.main.inputs}
    nodes: list[Node] = []
    taken: set[str] = set()

    def resolved(op: Op, value: str | Constant) -> Operand:
        if isinstance(value, Constant):
            return Held("", value)
        if value not in known:
            raise _malformed(op, f"takes `{value}`, which nothing before it gives")
        taken.add(value)
        return known[value]

    for op in program.ops:
        if op.blocks:
            raise _malformed(op, "holds blocks of its own, which are not compared")
        for name, _ in op.outputs:
            if name in known:
                raise _malformed(op, f"gives `{name}`, which was given before")
        if op.type == "const":
            if len(op.outputs) != 1 or op.inputs or op.attributes.keys() != {"val"}:
                raise _malformed(op, "is more than one value")
            ((name, type_),) = op.outputs
            if op.attributes["val"].type != type_:
                raise _malformed(op, f"declares {type_} and holds {op.attributes['val'].type}")
            known[name] = Held(name, op.attributes["val"])
            continue
        arguments = {
            parameter: tuple([resolved(op, value) for value in values])
            for parameter, values in op.inputs.items()
        }
        types = tuple(type_ for _, type_ in op.outputs)
        known |= {name: Output(len(nodes), i) for i, (name, _) in enumerate(op.outputs)}
        nodes.append(Node(op.type, op.name, arguments, op.attributes, types))
    for name in program.main.outputs:
        if name not in known:
            raise Malformed(Difference("interface", "", f"output `{name}` is given by nothing"))
    outputs = {name: known[name] for name in program.main.outputs}
    used = taken | outputs.keys()
    unused = (n for n, r in known.items() if isinstance(r, Held) and n not in used)
    return OpGraph(dict(program.main.inputs), nodes, outputs, tuple(unused))


def _malformed(op: Op, what: str) -> Malformed:
    return Malformed(Difference("ops", f"{op.type} `{op.name}`", what))
