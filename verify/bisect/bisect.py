"""The first op of a package to diverge, and why.

The graph is walked with every torch module's output in place of the package's own value, so an
error is charged to the few ops between two modules that made it (*local* error) and not to all
that come after (*propagated* error). Three switches tell causes apart: with the checkpoint's
weights only the graph is left, in float32 the graph and the stored weights, and in the declared
types precision comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute
from convert.values import Resolution
from verify.bisect.graph import clean_graph, differences
from verify.bisect.modules import module_of, module_outputs, module_values, weight_names
from verify.bisect.ops import Overflow, Segment, first_overflow, is_computed, worst_ops
from verify.bisect.weights import ProgramWeights, constants_of
from verify.judge.metrics import Metrics, compare, json_number
from verify.mil import Op, Program
from verify.reference.recording import Case
from verify.reference.reference import Reference
from verify.runtime.evaluator import Evaluator

__all__ = ["Bisection", "Divergence", "Overflow", "Segment", "bisect", "worst_ops"]

Cause = Literal["graph", "weights", "palette", "precision"]
# Between two modules, float32 and weights rounded to float16 leave 70 dB and more.
EXACT_DB = 60.0
# Rounding to the declared types leaves more than 45 dB of a few ops.
TYPED_DB = 30.0


@dataclass(frozen=True)
class Divergence:
    """The first op that diverges; SNRs are in dB, at the end of its segment."""

    op: str
    type: str
    module: str | None
    cause: Cause
    message: str
    graph_snr_db: float | None  # with the checkpoint's weights, float32
    local_snr_db: float | None  # with the package's weights, float32
    typed_snr_db: float | None  # in the declared types
    propagated_snr_db: float | None  # of a whole run in the declared types, here
    segment: Segment

    def to_json(self) -> dict[str, Any]:
        """Fields by name; SNRs in dB, `ops` by name."""
        names = ("op", "type", "module", "cause", "message")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("graph_snr_db", "local_snr_db", "typed_snr_db", "propagated_snr_db"):
            value = getattr(self, name)
            found[name] = None if value is None else json_number(value)
        found["ops"] = [op.name for op in self.segment.ops]
        return found


@dataclass(frozen=True)
class Bisection:
    """What a bisection found; true if nothing diverges."""

    component: str
    case: str
    modules: int  # outputs of torch modules that were compared
    divergence: Divergence | None
    overflow: Overflow | None

    def __bool__(self) -> bool:
        return self.divergence is None and self.overflow is None

    def to_json(self) -> dict[str, Any]:
        """The document of `bisect --json`: schema 1, and what was found, or null."""
        return {
            "schema": 1,
            "component": self.component,
            "case": self.case,
            "modules": self.modules,
            "divergence": None if self.divergence is None else self.divergence.to_json(),
            "overflow": None if self.overflow is None else self.overflow.to_json(),
        }


def bisect(
    program: Program,
    checkpoint: Checkpoint,
    component: str,
    case: Case,
    *,
    resolution: Resolution | None = None,
    device: str = "cpu",
) -> Bisection:
    """Find the first op of a package that is not what the checkpoint asks for.

    Args:
        case: one of the component, recorded.
        resolution: of the package; None for a text encoder.
        device: where PyTorch computes.

    Raises:
        CannotExecute: the package cannot be run, or no value of it is a torch module's output.
    """
    search = _Search(program, checkpoint, component, case.inputs, device)
    overflow = first_overflow(
        program, case.inputs, modules=search.outputs, tensors=search.weights.tensors, device=device
    )
    divergence = None
    for segment in search.segments():
        if (problem := search.examine(segment)) is not None:
            divergence = search.explain(segment, *problem, resolution)
            break
    return Bisection(component, case.name, len(search.values), divergence, overflow)


class _Search:
    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        component: str,
        inputs: Mapping[str, Tensor],
        device: str,
    ) -> None:
        self.program, self.checkpoint, self.component = program, checkpoint, component
        self.exact = Evaluator(program, mode="fp32", device=device)
        self.typed = Evaluator(program, device=device)
        with Reference(checkpoint, component, device=device) as reference:
            self.outputs, results = module_outputs(reference, inputs)
        self.names = weight_names(program, checkpoint.component_tensors(component))
        self.weights = ProgramWeights(checkpoint, component, self.exact, self.names)
        self.values = module_values(program, self.outputs, self.names)
        for name, value in results.items():
            self.values.setdefault(name, (name, value))
        if len(self.values) <= len(results):
            raise CannotExecute(
                "no value of the program is the output of a torch module",
                where=program.path,
                hint="Its weights must have the names of the checkpoint's.",
            )
        self.given = {name: torch.as_tensor(value).float() for name, value in inputs.items()}
        self.types = dict(program.main.inputs)
        for op in program.ops:
            self.types.update(op.outputs)

    def segments(self) -> Iterator[Segment]:
        """Every stretch of ops that ends in a torch module's output, in the order they run."""
        pending: dict[str, tuple[set[int], set[str]]] = {}  # value → its ops, what they take
        ops = [op for op in self.program.ops if is_computed(op)]
        for index, op in enumerate(ops):
            members, taken = {index}, set()
            for name in {v for vs in op.inputs.values() for v in vs if isinstance(v, str)}:
                if name in self.values or name in self.given:
                    taken.add(name)
                elif name in pending:
                    members |= pending[name][0]
                    taken |= pending[name][1]
            for name, _ in op.outputs:
                pending[name] = members, taken
                if name in self.values:
                    module, reference = self.values[name]
                    yield Segment(
                        tuple(ops[i] for i in sorted(members)),
                        name,
                        module,
                        reference,
                        {
                            t: self.values[t][1] if t in self.values else self.given[t]
                            for t in taken
                        },
                    )

    def run(self, segment: Segment, evaluator: Evaluator, weights: Mapping[str, Tensor]) -> Tensor:
        """What the ops of a segment make of its inputs, with some weights replaced."""
        values = {**weights, **segment.inputs}
        if evaluator.mode == "typed":
            values = {n: self._declared(n, v) for n, v in values.items()}
        for op in segment.ops:
            values.update(evaluator.run_op(op, values))
        return values[segment.value].float().cpu()

    def _declared(self, name: str, value: Tensor) -> Tensor:
        return value.half() if self.types[name].dtype == "fp16" else value

    def examine(self, segment: Segment) -> tuple[Cause, Metrics] | None:
        """Why a segment diverges, and how far, with the package's weights in float32."""
        exact = self.run(segment, self.exact, {})
        local = compare(segment.reference, exact)
        taken = constants_of(segment.ops, self.names)
        compressed = [name for _, name in taken if self.weights.is_compressed(name)]
        if any(self.weights.problem(name) for name in compressed):
            return "palette", local
        if _below(local, EXACT_DB):
            graph = compare(segment.reference, self.run(segment, self.exact, self._clean(taken)))
            if _below(graph, EXACT_DB):
                return "graph", local
            if not compressed or any(
                self.weights.problem(name) for _, name in taken if name not in compressed
            ):
                return "weights", local
        if _below(compare(exact, self.run(segment, self.typed, {})), TYPED_DB):
            return "precision", local
        return None

    def _clean(self, taken: Sequence[tuple[Op, str]]) -> dict[str, Tensor]:
        """The checkpoint's values for the weights of a segment."""
        values = {name: self.weights.original(name) for _, name in taken}
        return {name: value for name, value in values.items() if value is not None}

    def explain(
        self, segment: Segment, cause: Cause, local: Metrics, resolution: Resolution | None
    ) -> Divergence:
        """The op of a segment that is to blame."""
        op, message = segment.ops[-1], f"{len(segment.ops)} ops end in it"
        taken = constants_of(segment.ops, self.names)
        if cause in ("weights", "palette"):
            for user, name in taken:
                if problem := self.weights.problem(name):
                    op, message = user, problem
                    break
        elif cause == "graph":
            clean = clean_graph(self.program, self.checkpoint, self.component, resolution)
            for candidate in segment.ops:
                problem = "" if clean is None else differences(candidate, self.program, clean)
                if problem:
                    op, message = candidate, problem
                    break
        else:
            op, message = self._least_precise(segment)
        graph = compare(segment.reference, self.run(segment, self.exact, self._clean(taken)))
        typed = compare(segment.reference, self.run(segment, self.typed, {}))
        return Divergence(
            op=op.name,
            type=op.type,
            module=module_of(op, self.outputs, self.names) or segment.module,
            cause=cause,
            message=message,
            graph_snr_db=_snr(graph),
            local_snr_db=_snr(local),
            typed_snr_db=_snr(typed),
            propagated_snr_db=_snr(compare(segment.reference, self._whole_run(segment.value))),
            segment=segment,
        )

    def _least_precise(self, segment: Segment) -> tuple[Op, str]:
        """The op of a segment whose own rounding costs most."""
        values = dict(segment.inputs)
        worst: tuple[float, Op] | None = None
        for op in segment.ops:
            exact = self.exact.run_op(op, values)
            rounded = {n: self._declared(n, v) for n, v in values.items()}
            typed = self.typed.run_op(op, rounded)
            for name, value in exact.items():
                metrics = compare(value, typed[name])
                snr = metrics.snr_db if metrics.finite else float("-inf")
                if worst is None or snr < worst[0]:
                    worst = snr, op
            values.update(exact)
        assert worst is not None
        return worst[1], f"rounding to {worst[1].outputs[0][1].dtype} leaves {worst[0]:.1f} dB"

    def _whole_run(self, value: str) -> Tensor:
        return self.typed.run(self.given, keep=[value])[value].float().cpu()


def _below(metrics: Metrics, snr_db: float) -> bool:
    return not (metrics.finite and metrics.snr_db >= snr_db)


def _snr(metrics: Metrics) -> float | None:
    return metrics.snr_db if metrics.finite else None
