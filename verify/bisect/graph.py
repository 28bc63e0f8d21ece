"""A package's ops against those of the graph that our converter makes of the same checkpoint."""

from __future__ import annotations

from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.values import ATTENTIONS, Resolution, target_of
from verify.artifact.graph import infer_attention
from verify.artifact.stored import ADDED
from verify.mil import Constant, Op, Program


def clean_graph(
    program: Program, checkpoint: Checkpoint, component: str, resolution: Resolution | None
) -> Program | None:
    """The graph that our converter makes, without its weights; None if it makes no such graph."""
    from verify.artifact.ours import our_network, our_program

    target = target_of(program.opset)
    attention = infer_attention(program) if COMPONENTS[component].has_attention else None
    if target is None or attention not in (None, *ATTENTIONS):
        return None
    try:
        network = our_network(program, checkpoint, component, resolution, target)
    except InputError:
        return None
    return our_program(network, component, target)


def differences(op: Op, program: Program, clean: Program) -> str:
    """How an op differs from the one of its name in another graph; empty if in nothing.

    Values of weights are not looked at, only whether they are there.
    """
    other = next((o for o in clean.ops if o.name == op.name and o.type != "const"), None)
    if other is None:
        return ""
    if other.type != op.type:
        return f"{op.type}, it should be {other.type}"
    for parameter in sorted(op.inputs.keys() | other.inputs.keys()):
        if parameter not in op.inputs:
            return f"it has no {parameter}"
        if parameter not in other.inputs:
            return f"it should have no {parameter}"
        ours = [_value(v, program) for v in op.inputs[parameter]]
        theirs = [_value(v, clean) for v in other.inputs[parameter]]
        if ours != theirs:
            return f"{parameter} is {_text(ours)}, it should be {_text(theirs)}"
    return ""


def _value(value: str | Constant, program: Program) -> Any:
    """What a small constant is; the name of a weight, or of what another op made."""
    if isinstance(value, Constant):
        return value.item()
    maker = next((op for op in program.ops if any(n == value for n, _ in op.outputs)), None)
    if maker is None:
        return value
    if maker.type.startswith("constexpr_"):
        return ADDED.sub("", value)
    if maker.type != "const":
        return value
    constant = maker.attributes["val"]
    return ADDED.sub("", value) if constant.file is not None else constant.item()


def _text(values: list[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
