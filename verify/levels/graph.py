"""Level `graph`: a program is, op by op, the one of another size, sizes aside.

The other program is small, so that its numbers can be compared with PyTorch's. The converter that
made both is not trusted: what it does wrong alike is seen in those numbers, and what it does
wrong at one size alone is a difference here that no size explains. Nothing is run, and no weight is
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.process.memory import uncollected
from convert.process.progress import Say, silent
from convert.values import FORMATS, Resolution
from verify.artifact.graph import infer_attention
from verify.artifact.interface import infer_resolution
from verify.artifact.ours import is_ours, our_network, our_program
from verify.artifact.probe import target_for, weight_file
from verify.artifact.stored import infer_compression
from verify.artifact.usual import by_usual_names
from verify.equivalence.chunks import uncut, whole_attentions
from verify.equivalence.compare import SameWeights, compare, compare_interfaces, unlike
from verify.equivalence.nodes import Aspect, Difference, Malformed, OpGraph, graph_of
from verify.equivalence.shapes import false_types
from verify.equivalence.sizes import (
    SAME,
    Ambiguous,
    SizeMap,
    constant_integers,
    size_map,
    small_size_for,
    taken_integers,
)
from verify.judge.checks import Check, failed, passed
from verify.levels.subject import Subject
from verify.mil import Program

GATES: dict[Aspect, str] = {
    "interface": "the inputs and outputs of {}, sizes aside",
    "ops": "the ops of {}, wired alike",
    "constants": "the attributes, constants and weights of {}",
    "sizes": "the integers of {}, each as the size map says",
    "types": "every declared type what its op makes of its inputs",
}


@dataclass(frozen=True)
class Counterpart:
    """The program that another one is compared with.

    Attributes:
        size: that it is for; None of a text encoder.
        executed: whether its numbers are known, or it was made only to be compared with.
        weights: how its weights are told from others.
    """

    program: Program
    size: Resolution | None
    executed: bool
    weights: SameWeights

    def __str__(self) -> str:
        size = "" if self.size is None else f" for {self.size}"
        if self.executed:
            return f"the executed program{size}"
        return f"a program made anew{size}"


def check_graphs(
    subject: Subject,
    *,
    executed: Mapping[str, Program] | None = None,
    say: Say = silent,
) -> Iterator[Check]:
    """Every component that is there.

    Args:
        executed: by component, programs of the same weights at another size whose numbers are
            checked; where there is none, a program is made that is not executed. Text encoders
            have no size: what is executed of them is what was shipped, and is compared with a
            program made anew.
    """
    for component, program in subject.programs.items():
        say(f"graph of {component}")
        yield from check_graph(
            program,
            component,
            subject.source,
            resolution=subject.resolution,
            claims=subject.artifact.claims,
            executed=(executed or {}).get(component),
        )


def check_graph(
    program: Program,
    component: str,
    source: Checkpoint,
    *,
    resolution: Resolution | None = None,
    claims: Mapping[str, str] | None = None,
    executed: Program | None = None,
) -> list[Check]:
    """One program.

    Args:
        resolution: what it must be made for; its own if None.
        claims: the manifest's.
        executed: the program that it is compared with.
    """
    with uncollected():
        return _check(program, component, source, resolution, dict(claims or {}), executed)


def _check(
    program: Program,
    component: str,
    source: Checkpoint,
    resolution: Resolution | None,
    claims: dict[str, str],
    executed: Program | None,
) -> list[Check]:
    program = by_usual_names(program, component)
    attention = _attention(program, claims) if COMPONENTS[component].has_attention else None
    if attention is not None:
        claims["attention"] = attention
    try:
        size = _size(program, component, source, resolution)
    except InputError as error:
        return [failed("graph", component, "interface", "a size of images", error.problem)]
    try:
        other = _counterpart(program, component, source, claims, executed, size)
        sizes = SAME
        if size is not None and other.size is not None:
            constants = constant_integers(component, source, other.program)
            sizes = size_map(component, source, other.size, size, constants)
    except (InputError, CannotExecute, Ambiguous) as error:
        problem = error.problem if isinstance(error, InputError | CannotExecute) else str(error)
        return [_no_verdict(component, f"there is nothing to compare it with: {problem}")]
    found, told = _differences(program, other, sizes, attention)
    if found and not is_ours(program, source, component):
        why = "another converter has made it, and no program of it small enough to be executed"
        return [_no_verdict(component, f"{why}; ours differs first in {found[0]}")]
    return list(_checks(component, other, found, told))


def _checks(
    component: str, other: Counterpart, found: list[Difference], told: Mapping[Aspect, str]
) -> Iterator[Check]:
    """One check for each kind of difference; those that nothing was found of have passed."""
    for kind, gate in GATES.items():
        gate = gate.format(other)
        of_kind = [difference for difference in found if difference.kind == kind]
        if of_kind:
            more = f" (and {len(of_kind) - 1} more)" if len(of_kind) > 1 else ""
            yield failed("graph", component, kind, gate, f"{of_kind[0]}{more}")
        elif kind in told:
            yield passed("graph", component, kind, gate, told[kind])


def _differences(
    program: Program, other: Counterpart, sizes: SizeMap, attention: str | None
) -> tuple[list[Difference], dict[Aspect, str]]:
    """All differences, and what was compared, by kind; what could not be is not among it."""
    found = list(compare_interfaces(program, other.program, sizes))
    told: dict[Aspect, str] = {"interface": ""}
    try:
        graph = graph_of(program)
        wrong, unknown = false_types(graph)
        found += wrong
        left = ", ".join(f"{count} {name}" for name, count in sorted(unknown.items()))
        told["types"] = f"the size map alone tells of {left}" if left else ""
        small = graph_of(other.program)
        if attention == "split_einsum_v2":
            found += uncut(graph)
            graph = whole_attentions(graph)
        if attention not in (None, "original"):
            # With few queries split_einsum is split_einsum_v2, which may be cut at the small size.
            small = whole_attentions(small)
    except Malformed as error:
        return [*found, error.difference], told
    if (difference := unlike(graph, small)) is not None:
        return [difference, *found], told
    told |= {"ops": _counted(graph, attention, other), "constants": "", "sizes": _mapped(sizes)}
    return [*compare(graph, small, sizes, other.weights), *found], told


def _counted(graph: OpGraph, attention: str | None, other: Counterpart) -> str:
    text = f"{len(graph.nodes):,} ops"
    if attention == "split_einsum_v2":
        text += ", chunks of queries taken together"
    if other.size is not None and not other.executed:
        text += "; that program was not executed here"
    return text


def _mapped(sizes: SizeMap) -> str:
    count = len(sizes.sizes)
    return f"{count} heights, widths and areas, none of which is another number" if count else ""


def _counterpart(
    program: Program,
    component: str,
    source: Checkpoint,
    claims: Mapping[str, str],
    executed: Program | None,
    shipped: Resolution | None,
) -> Counterpart:
    """What the program is compared with: what was executed, or else made now.

    Args:
        shipped: the size that the program must be for.

    Raises:
        InputError: the checkpoint does not fit its config, or its weights are not there.
        CannotExecute: no system reads the program's format, or no small size will do.
    """
    if executed is not None and COMPONENTS[component].has_resolution:
        executed = by_usual_names(executed, component)
        size = infer_resolution(executed, component, source)
        return Counterpart(executed, size, True, SameWeights())
    if not source.part(component).tensors:
        raise InputError("a program to compare it with needs the checkpoint")
    size = None
    if shipped is not None:
        taken = taken_integers(component, source, [program])
        size = small_size_for(source, {(component, shipped): taken})
    made = made_at(program, component, source, size, claims)
    # It is made around the program's own weights, so where both are in one place they are one.
    places = frozenset((weight_file(program), weight_file(made)))
    return Counterpart(made, size, False, SameWeights({places}))


def made_at(
    program: Program,
    component: str,
    source: Checkpoint,
    size: Resolution | None,
    claims: Mapping[str, str],
) -> Program:
    """The program of the converter for a size, with the attention, target and bits of another.

    Raises:
        InputError: the checkpoint does not fit its config or the size.
        CannotExecute: no system reads the program's format.
    """
    target = next((t for t in FORMATS if t == claims.get("deployment")), None)
    target = target or target_for(program)
    compression = infer_compression(program, source, component)
    network = our_network(program, source, component, size, target, compression, claims=claims)
    return our_program(network, component, target)


def _size(
    program: Program, component: str, source: Checkpoint, wanted: Resolution | None
) -> Resolution | None:
    """The size that a program must be for. Raises InputError if it is for none."""
    if not COMPONENTS[component].has_resolution:
        return None
    own = infer_resolution(program, component, source)
    if own is None:
        shapes = ", ".join(f"{f.name} {list(f.shape)}" for f in program.inputs)
        raise InputError(f"no size of images goes with its inputs: {shapes}")
    return wanted or own


def _attention(program: Program, claims: Mapping[str, str]) -> str:
    """The attention that is claimed, or that the graph has; of a broken graph, that it most has."""
    found = claims.get("attention") or infer_attention(program)
    if found != "unknown":
        return found
    if not any(op.type == "einsum" for op in program.ops):
        return "original"
    shapes = (t.shape for op in program.ops if op.type == "softmax" for _, t in op.outputs)
    cut = any(len(shape) == 4 and shape[3] < shape[1] for shape in shapes)
    return "split_einsum_v2" if cut else "split_einsum"


def _no_verdict(component: str, why: str) -> Check:
    gate = "the program of another size whose numbers are compared"
    return Check("graph", component, "program", gate, "indeterminate", message=why)
