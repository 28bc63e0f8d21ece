"""What is known of every op before a program runs: its function, arguments, what dies with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verify.mil.program import Constant, Op, Program
from verify.operations.registry import How, Implementation, bind

Argument = tuple[str, How, list[str | Constant]]  # a parameter, and what it is given


@dataclass(frozen=True)
class Step:
    """One op, ready to be run.

    `values` are arguments that are plain Python values and known by now; `open` are tensors, and
    values that the program computes.
    """

    op: Op
    implementation: Implementation
    values: Mapping[str, Any]
    open: list[Argument]
    names: frozenset[str]  # of the values and constants it takes
    last: frozenset[str]  # of what it takes or gives, used by no later step


def make_step(op: Op, program: Program, constants: Mapping[str, Constant]) -> Step:
    """One op by itself: nothing of it is used later.

    Raises:
        CannotExecute: as `bind`.
    """
    call = bind(op, program)
    values: dict[str, Any] = {}
    rest = []
    for name, how, bindings in call.arguments:
        known = [constants.get(b) if isinstance(b, str) else b for b in bindings]
        if how == "value" and all(c is not None and c.file is None for c in known):
            items = [c.item() for c in known if c is not None]
            values[name] = items[0] if len(items) == 1 else items
        else:
            rest.append((name, how, bindings))
    taken = {b for bindings in op.inputs.values() for b in bindings if isinstance(b, str)}
    last = frozenset({*taken, *(name for name, _ in op.outputs)})
    return Step(op, call.implementation, values, rest, frozenset(taken), last)


def make_plan(program: Program, constants: Mapping[str, Constant]) -> tuple[list[Step], list[Step]]:
    """The steps that compute, in order, and those that decode weights (`constexpr_*`).

    Raises:
        CannotExecute: as `bind`.
    """
    steps: list[Step] = []
    decoders: list[Step] = []
    for op in program.ops:
        if op.type != "const":
            step = make_step(op, program, constants)
            (decoders if op.type.startswith("constexpr_") else steps).append(step)
    return with_lifetimes(steps), decoders


def with_lifetimes(steps: Sequence[Step]) -> list[Step]:
    """The same steps, with what no later one uses as `last`."""
    found: list[Step] = []
    used: set[str] = set()
    for step in reversed(steps):
        there = step.names | {name for name, _ in step.op.outputs}
        found.append(replace(step, last=there - used))
        used |= there
    return found[::-1]
