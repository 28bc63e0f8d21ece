"""What rounding does, op by op: local against propagated error, and the first overflow.

Both need the package alone: the declared types are compared with float32 on the same program.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from verify.artifact.interface import precision
from verify.bisect.modules import module_of, weight_names
from verify.judge.metrics import Metrics, compare, json_number
from verify.mil import Op, Program
from verify.runtime.evaluator import Evaluator


@dataclass(frozen=True)
class Segment:
    """Some ops in order, what they are given, and what they should make of it."""

    ops: tuple[Op, ...]
    value: str  # the MIL value that they make
    module: str | None  # the torch module whose output that is
    reference: Tensor  # float32, in the value's shape
    inputs: Mapping[str, Tensor]  # what comes from outside, float32


@dataclass(frozen=True)
class Overflow:
    """The first op whose result is finite in float32 and not in its declared type."""

    segment: Segment  # the op alone, with float32's values
    module: str | None
    dtype: str
    largest: float  # of the float32 result, in magnitude
    local: bool  # whether it overflows on those, or only on what a whole run hands it

    def to_json(self) -> dict[str, Any]:
        """The op by name and type, its module, its dtype, and the largest magnitude in float32."""
        (op,) = self.segment.ops
        names = ("module", "dtype", "largest", "local")
        return {"op": op.name, "type": op.type, **{n: getattr(self, n) for n in names}}

    def __str__(self) -> str:
        (op,) = self.segment.ops
        return (
            f"{op.type} {op.name} overflows {self.dtype}: it reaches {self.largest:.6g} in float32"
        )


@dataclass(frozen=True)
class OpError:
    """What rounding costs one op: by itself, and with all that came before."""

    op: Op
    value: str  # which of its results
    given: Mapping[str, Tensor]  # float32's values that it takes
    right: Tensor  # what it makes of them in float32
    local: Metrics  # the op in its declared type on float32's values, rounded to their types
    propagated: Metrics  # of a whole run in the declared types


def op_errors(
    program: Program, inputs: Mapping[str, Any], *, device: str = "cpu"
) -> Iterator[OpError]:
    """The errors of every op with a floating-point result, in the order they run.

    Raises:
        InputError: inputs that the program does not have.
        CannotExecute: an op fails.
    """
    exact, typed = Evaluator(program, mode="fp32", device=device), Evaluator(program, device=device)
    types = dict(program.main.inputs)
    values: dict[str, Tensor] = {}
    for name, value in inputs.items():
        values[name] = torch.as_tensor(value).to(device, torch.float32)
    last = _last_use(program)
    runs = zip(exact.steps(inputs), typed.steps(inputs), strict=True)
    for index, ((op, right), (_, rounded)) in enumerate(runs):
        names = {v for vs in op.inputs.values() for v in vs if isinstance(v, str)}
        given = {n: values[n] for n in names if n in values}
        alone = typed.run_op(op, {n: _declared(v, types[n].dtype) for n, v in given.items()})
        for name, type_ in op.outputs:
            types[name], values[name] = type_, right[name]
            if right[name].is_floating_point():
                yield OpError(
                    op,
                    name,
                    given,
                    right[name],
                    compare(right[name], alone[name]),
                    compare(right[name], rounded[name]),
                )
        for name in [*names, *(n for n, _ in op.outputs)]:
            if last.get(name, index) <= index:
                values.pop(name, None)


def worst_ops(
    program: Program,
    inputs: Mapping[str, Any],
    *,
    limit: int = 10,
    modules: Collection[str] = (),
    tensors: Collection[str] = (),
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """The ops that rounding costs most, worst first, as a report's `worst_ops` has them.

    Args:
        inputs: of the program.
        modules, tensors: paths of torch modules and names of the checkpoint's tensors, to tell
            which module an op came from.

    Returns:
        op, type, module, local_snr_db and propagated_snr_db; an SNR is null where it is not finite.
    """
    weights = weight_names(program, tensors)
    found = [e for e in op_errors(program, inputs, device=device) if not _exact(e)]
    found.sort(key=lambda e: e.local.snr_db if e.local.finite else -math.inf)
    return [
        {
            "op": e.op.name,
            "type": e.op.type,
            "module": module_of(e.op, modules, weights),
            "local_snr_db": json_number(e.local.snr_db),
            "propagated_snr_db": json_number(e.propagated.snr_db),
        }
        for e in found[:limit]
    ]


def worst_ops_of(
    programs: Mapping[str, Program],
    checkpoint: Checkpoint,
    inputs: Mapping[str, Mapping[str, Any]],
    *,
    device: str = "cpu",
) -> dict[str, list[dict[str, Any]]]:
    """`worst_ops` of every component that computes in float16, on inputs of a recorded run."""
    found = {}
    for component, program in programs.items():
        if precision(program) == "fp16":
            tensors = checkpoint.component_tensors(component)
            found[component] = worst_ops(
                program,
                inputs[component],
                modules=module_paths(tensors),
                tensors=tensors,
                device=device,
            )
    return found


def module_paths(tensors: Collection[str]) -> set[str]:
    """The torch modules that hold some tensors, themselves or further in."""
    words = [name.split(".")[:-1] for name in tensors]
    return {".".join(path[:end]) for path in words for end in range(1, len(path) + 1)}


def first_overflow(
    program: Program,
    inputs: Mapping[str, Any],
    *,
    modules: Collection[str] = (),
    tensors: Collection[str] = (),
    device: str = "cpu",
) -> Overflow | None:
    """The first op whose result is not finite in its type while it is in float32; None if none."""
    for error in op_errors(program, inputs, device=device):
        if not error.propagated.finite and bool(torch.isfinite(error.right).all()):
            op = error.op
            module = module_of(op, modules, weight_names(program, tensors))
            given = {name: value.float().cpu() for name, value in error.given.items()}
            return Overflow(
                Segment((op,), error.value, module, error.right.float().cpu(), given),
                module=module,
                dtype=dict(op.outputs)[error.value].dtype,
                largest=float(error.right.abs().max()),
                local=not error.local.finite,
            )
    return None


def is_computed(op: Op) -> bool:
    """Whether an op runs by itself; constants and decoders run inside the ops that use them."""
    return op.type != "const" and not op.type.startswith("constexpr_")


def _exact(error: OpError) -> bool:
    return error.local.finite and error.local.snr_db == math.inf


def _declared(value: Tensor, dtype: str) -> Tensor:
    return value.half() if dtype == "fp16" and value.is_floating_point() else value


def _last_use(program: Program) -> dict[str, int]:
    ops = [op for op in program.ops if is_computed(op)]
    return {
        value: index
        for index, op in enumerate(ops)
        for values in op.inputs.values()
        for value in values
        if isinstance(value, str)
    }
