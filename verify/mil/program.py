"""An ML Program as plain data, before anything is run.

Nothing here depends on how it was written: `verify.mil.package` reads the protobuf of a
`.mlpackage`, `verify.mil.compiled` the text of a `.mlmodelc`, and both give the same `Program`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import CannotExecute, InputError, nearest
from verify.mil.blob import WeightFile


@dataclass(frozen=True)
class TensorType:
    """A MIL dtype (`fp16`, `fp32`, `int32`, `bool`, `uint4`, `string`, …) and a shape.

    A dimension that the program leaves open is -1; one of `any_rank` may be any number of them.
    """

    dtype: str
    shape: tuple[int, ...]
    any_rank: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}[…]" if self.any_rank else f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Constant:
    """A constant of a program: its value, or the place of its value in a weight file."""

    type: TensorType
    value: np.ndarray | None = None
    file: WeightFile | None = None
    offset: int = 0

    def array(self) -> np.ndarray:
        """The value, unpacked: sub-byte types as uint8 or int8, strings as str arrays.

        Raises:
            InputError: the weight file cannot give it.
            CannotExecute: it is of a dtype that nothing here computes with.
        """
        if self.file is None:
            assert self.value is not None
            return self.value
        return self.file.read(self.offset, self.type.dtype, self.type.shape)

    def item(self) -> Any:
        """The value as a Python scalar or nested list."""
        return self.array().tolist()


@dataclass
class Block:
    """Ops in order of execution; the names they take from outside and give back."""

    inputs: dict[str, TensorType]
    ops: list[Op]
    outputs: list[str]


@dataclass
class Op:
    """One MIL operation; `const` ops keep their value in `attributes["val"]`."""

    type: str
    name: str
    inputs: dict[str, list[str | Constant]]
    attributes: dict[str, Constant]
    outputs: list[tuple[str, TensorType]]
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Feature:
    """An input or output as the model's interface describes it; images have dtype `image`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    description: str = ""


@dataclass
class Program:
    """An ML Program, by one of its functions, `function`.

    `inputs` and `outputs` are the public interface, `main.inputs` and `main.outputs` the
    function's own view of it. Other functions of the same file are other `Program`s, which may
    share weights with it. `aside` names what else the file says of it, which nothing here reads.
    """

    path: Path
    opset: str
    specification_version: int
    inputs: list[Feature]
    outputs: list[Feature]
    main: Block
    author: str = ""
    license: str = ""
    short_description: str = ""
    version: str = ""
    user_defined: dict[str, str] = field(default_factory=dict)
    function: str = "main"
    aside: tuple[str, ...] = ()

    @property
    def ops(self) -> list[Op]:
        """The ops of the main block, `const` included."""
        return self.main.ops

    def constants(self) -> Iterator[tuple[str, Constant]]:
        """Every `const` op's name and value."""
        for op in self.main.ops:
            if op.type == "const":
                yield op.outputs[0][0], op.attributes["val"]


@dataclass(frozen=True)
class Functions:
    """The functions of an ML Program; each is read when it is asked for.

    Attributes:
        where: the file that holds them.
        names: sorted.
        default: the one that Core ML takes if none is named; None if the program does not say.
        read: a function by its name.
    """

    where: Path
    names: tuple[str, ...]
    default: str | None
    read: Callable[[str], Program]

    def one(self, name: str | None = None) -> Program:
        """The function of a name, or the only one if that is None: never one of several unasked.

        Raises:
            InputError: it has no function of this name.
            CannotExecute: none is named, and there is not one.
        """
        if name is None and len(self.names) == 1:
            return self.read(self.names[0])
        if name in self.names:
            return self.read(name)
        if name is not None:
            near = nearest(name, self.names)
            raise InputError(
                f"has no function {name!r}" + (f"; did you mean `{near}`?" if near else ""),
                where=self.where,
                hint=f"Functions: {', '.join(self.names) or 'none'}.",
            )
        raise CannotExecute(
            f"one function is needed, this program has {len(self.names)}: "
            + (", ".join(self.names) or "none")
            + (f" (default: {self.default})" if self.default else ""),
            where=self.where,
            hint="Split a multi-function package into one package per function.",
        )

    def all(self) -> dict[str, Program]:
        """Every function, by name. Raises CannotExecute if there is none."""
        if not self.names:
            self.one()
        return {name: self.read(name) for name in self.names}


def functions(
    where: Path, names: Iterable[str], description: Any, read: Callable[[str, Any], Program]
) -> Functions:
    """The functions of a model, with their parts of its interface.

    Args:
        where: the file that holds them.
        description: a `ModelDescription` message, which has an interface for each function, or
            (before specification 9) one for the only function.
        read: takes a name, and the message with the function's interface.

    Raises:
        CannotExecute: a model with states, or whose default function is not there.
    """
    described = {f.name: f for f in description.functions}
    names, default = tuple(sorted(names)), description.defaultFunctionName or None
    for state in (*description.state, *(s for f in description.functions for s in f.state)):
        raise CannotExecute(
            f"has the state {state.name!r}: read_state and write_state are not supported",
            where=where,
            hint="Only models that keep nothing from run to run can be read here.",
        )
    if default is not None and default not in names:
        raise CannotExecute(f"the default function {default!r} is not in the program", where=where)

    def one(name: str) -> Program:
        if described and name not in described:
            raise CannotExecute(f"function {name!r} has no description", where=where)
        return read(name, described.get(name, description))

    return Functions(where, names, default, one)


def require_weights(program: Program) -> None:
    """Raise InputError unless the program's weight files hold all that it refers to."""

    def walk(block: Block) -> Iterator[Constant]:
        for op in block.ops:
            yield from op.attributes.values()
            for values in op.inputs.values():
                yield from (value for value in values if isinstance(value, Constant))
            for inner in op.blocks:
                yield from walk(inner)

    for constant in walk(program.main):
        if constant.file is not None:
            constant.file.check(constant.offset, constant.type.dtype, constant.type.shape)


def histogram(program: Program) -> Mapping[str, int]:
    """How often each op type occurs in the main block and the blocks within."""
    from collections import Counter

    def walk(block: Block) -> Iterator[str]:
        for op in block.ops:
            yield op.type
            for inner in op.blocks:
                yield from walk(inner)

    return Counter(walk(program.main))
