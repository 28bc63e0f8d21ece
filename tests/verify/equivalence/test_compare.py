"""Whatever is changed in a program, it is seen: changes at random, one at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.networks.build import build_network
from convert.values import ATTENTIONS, Resolution
from verify.artifact.ours import our_program
from verify.equivalence.nodes import graph_of
from verify.equivalence.sizes import small_size
from verify.levels.graph import check_graph
from verify.mil import Constant, Op, Program, TensorType

SIZE = Resolution(384, 520)  # chunks of queries, and sides that are odd at every level


def unet(source: Checkpoint, attention: str, size: Resolution) -> Program:
    network = build_network(
        source, "unet", resolution=size, attention=attention, dtype=np.float16,
        deployment="macOS14",
    )  # fmt: skip
    return our_program(network, "unet", "macOS14")


def changed(value: Constant, rng: random.Random) -> Constant | None:
    """A constant with one element changed, or another place in the weight file."""
    if value.file is not None:
        return replace(value, offset=value.offset + 64)
    array = value.array().copy()
    if array.dtype.kind not in "iufb" or not array.size:
        return None
    flat = array.reshape(-1)
    at = rng.randrange(flat.size)
    if array.dtype.kind == "b":
        flat[at] = not flat[at]
    elif array.dtype.kind == "f":
        flat[at] = np.nextafter(flat[at], array.dtype.type(np.inf))
    else:
        flat[at] += 1
    return replace(value, value=array)


def change(program: Program, rng: random.Random) -> tuple[Program, str]:
    """The program with one thing changed in one op, and what that was."""
    constants = dict(program.constants())
    ops = list(program.ops)
    while True:
        number = rng.randrange(len(ops))
        op = ops[number]
        if op.type == "const":
            continue
        for what, new in _changes(program, op, number, constants, rng):
            ops[number] = new
            main = replace(program.main, ops=ops)
            return replace(program, main=main), f"{what} of {op.type} {op.name}"


def _changes(
    program: Program, op: Op, number: int, constants: dict[str, Constant], rng: random.Random
) -> Iterator[tuple[str, Op]]:
    """One change of an op, of a kind chosen at random; nothing if it has no place for it."""
    kind = rng.choice(("constant", "constant", "source", "source", "type", "dtype", "argument"))
    name, type_ = op.outputs[0]
    if op.attributes:  # a decoder of weights
        parameter = rng.choice(sorted(op.attributes))
        new = changed(op.attributes[parameter], rng)
        if new is not None:
            yield parameter, replace(op, attributes={**op.attributes, parameter: new})
        return
    parameter = rng.choice(sorted(op.inputs))
    values = list(op.inputs[parameter])
    place = rng.randrange(len(values))
    value = values[place]
    if kind == "dtype":
        other = TensorType("fp32" if type_.dtype == "fp16" else "fp16", type_.shape)
        yield kind, replace(op, outputs=[(name, other), *op.outputs[1:]])
    elif kind == "type" and type_.shape:
        shape = list(type_.shape)
        shape[rng.randrange(len(shape))] += 1
        other = TensorType(type_.dtype, tuple(shape))
        yield kind, replace(op, outputs=[(name, other), *op.outputs[1:]])
    elif kind == "argument":
        yield kind, replace(op, inputs={k: v for k, v in op.inputs.items() if k != parameter})
    elif isinstance(value, str) and value in constants:
        new = changed(constants[value], rng)
        if kind == "constant" and new is not None:
            values[place] = new
            yield f"{kind} {parameter}", replace(op, inputs={**op.inputs, parameter: values})
    elif kind == "source" and isinstance(value, str):
        before = [n for o in program.ops[:number] if o.type != "const" for n, _ in o.outputs]
        others = [n for n in (*program.main.inputs, *before) if n != value]
        if others:
            values[place] = rng.choice(others)
            yield f"{kind} {parameter}", replace(op, inputs={**op.inputs, parameter: values})


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_change_goes_unseen(base: Checkpoint, attention: str) -> None:
    program = unet(base, attention, SIZE)
    small = unet(base, attention, small_size(base, {"unet": [program]}))
    # Both are of one weight file that is nowhere; so is what they are told to be.
    for constant in (*dict(program.constants()).values(), *dict(small.constants()).values()):
        if constant.file is not None:
            constant.file.path = small.path
    rng = random.Random(attention)
    sound = check_graph(program, "unet", base, executed=small)
    assert {check.verdict for check in sound} == {"pass"}, [check.message for check in sound]
    for _ in range(12):
        other, what = change(program, rng)
        checks = check_graph(other, "unet", base, executed=small)
        assert "fail" in {check.verdict for check in checks}, what


def test_names_and_shared_constants_make_no_difference(base: Checkpoint) -> None:
    """A constant written where it is used, and other names of ops, are the same graph."""
    program = unet(base, "original", SIZE)
    small = unet(base, "original", small_size(base, {"unet": [program]}))
    constants = dict(program.constants())
    names = {
        name: f"renamed_{name}"
        for op in program.ops
        if op.type != "const"
        for name, _ in op.outputs
        if name not in program.main.outputs
    }

    def renamed(op: Op) -> Op:
        inputs = {
            key: [
                constants[v] if v in constants and constants[v].file is None else names.get(v, v)
                for v in values
                if isinstance(v, str)
            ]
            for key, values in op.inputs.items()
        }
        outputs = [(names.get(name, name), type_) for name, type_ in op.outputs]
        return replace(op, inputs=inputs, outputs=outputs, name=f"renamed {op.name}")

    ops = [renamed(op) for op in program.ops if op.type != "const"]
    kept = [op for op in program.ops if op.type == "const" and op.attributes["val"].file]
    same = replace(program, main=replace(program.main, ops=[*kept, *ops]))
    for constant in (*dict(same.constants()).values(), *dict(small.constants()).values()):
        if constant.file is not None:
            constant.file.path = small.path
    checks = check_graph(same, "unet", base, executed=small)
    assert {check.verdict for check in checks} == {"pass"}, [check.message for check in checks]
    assert len(graph_of(same).nodes) == len(graph_of(program).nodes)
