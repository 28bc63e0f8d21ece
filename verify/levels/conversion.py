"""Level `conversion`: each component's outputs against the same weights in PyTorch float32.

Teacher-forced: every run of a component gets the inputs of the recorded reference run, so errors
do not add up from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.components import BATCH, COMPONENTS
from convert.errors import CannotExecute
from convert.process.progress import Say, silent
from verify.artifact.interface import with_aliases
from verify.judge.checks import Check, failed
from verify.judge.metrics import Metrics, compare
from verify.judge.policy import Policy
from verify.mil import Program
from verify.reference.recording import Case
from verify.runtime.runtimes import Runtime

Floors = Mapping[tuple[str, str], Metrics]  # (case, output) → PyTorch float16
GUIDED = (" uncond", " cond")  # the halves of the UNet's batch


def check_conversion(
    program: Program,
    component: str,
    cases: tuple[Case, ...],
    runtime: Runtime,
    policy: Policy,
    *,
    say: Say = silent,
) -> Iterator[Check]:
    """Run a package on the recorded cases and judge every output of every case.

    Raises:
        CannotExecute: the runtime cannot read or run the package, or there was nothing to compare.
    """
    if not cases:
        raise CannotExecute(f"no recorded case of {component}", where=program.path)
    cases = tuple(_in_its_names(program, component, case) for case in cases)
    problem = _misfit(program, cases[0])
    if problem:
        yield failed("conversion", component, "interface", "fits the reference", problem)
        return
    floors = _floors(component, cases)
    model = runtime.load(Path(program.path))
    for case in cases:
        say(f"{runtime.name} {component}, {case.name}")
        outputs = model(case.inputs)
        if not outputs:
            raise CannotExecute("it gave no output at all", where=program.path)
        yield from _compare(component, case, outputs, floors, policy)


def _in_its_names(program: Program, component: str, case: Case) -> Case:
    """A case by the names that the program has; what it gives twice is compared twice."""
    inputs, outputs = with_aliases(program, component, case.inputs, case.outputs)
    _, fp16 = with_aliases(program, component, case.inputs, case.fp16)
    return replace(case, inputs=inputs, outputs=outputs, fp16=fp16)


def _misfit(program: Program, case: Case) -> str:
    """Why a package cannot be given a case's inputs, or nothing."""
    found = {f.name: tuple(f.shape) for f in program.inputs}
    given = {name: tuple(value.shape) for name, value in case.inputs.items()}
    if found == given:
        return ""
    wrong = [n for n in found.keys() | given.keys() if found.get(n) != given.get(n)]
    return "; ".join(
        f"input {n} is {list(found[n]) if n in found else 'missing'}, "
        f"the reference has {list(given[n]) if n in given else 'none'}"
        for n in sorted(wrong)
    )


def _compare(
    component: str,
    case: Case,
    outputs: Mapping[str, np.ndarray],
    floors: Floors,
    policy: Policy,
) -> Iterator[Check]:
    for name in sorted(outputs.keys() - case.outputs.keys()):
        message = f"an output that the reference does not have; it has {', '.join(case.outputs)}"
        yield failed("conversion", component, case.name, f"no output `{name}`", message)
    for name, reference in case.outputs.items():
        if name not in outputs:
            message = f"missing among {', '.join(sorted(outputs))}"
            yield failed("conversion", component, case.name, f"has output `{name}`", message)
            continue
        output = outputs[name]
        if tuple(output.shape) != tuple(reference.shape):
            message = f"{name} is {list(output.shape)}, the reference {list(reference.shape)}"
            yield failed("conversion", component, case.name, "shape", message)
            continue
        for suffix, part in _parts(component):
            metrics = compare(reference[part], output[part])
            fp16 = floors.get((case.name + suffix, name))
            ratio = _error_ratio(metrics, fp16, name, floors)
            judged = policy.judge("conversion", component, metrics, ratio, output=name)
            yield Check(
                level="conversion",
                component=component,
                case=case.name + suffix,
                output=name,
                metrics=metrics,
                fp16=fp16,
                fp16_error_ratio=ratio,
                gate=judged.gate,
                verdict=judged.verdict,
                message=judged.message,
            )


def _parts(component: str) -> list[tuple[str, slice]]:
    """The parts of an output's batch that are judged by themselves."""
    batches = {feature.shape[0] for feature in COMPONENTS[component].outputs.values()}
    if batches != {BATCH}:
        return [("", slice(None))]
    return [(suffix, slice(i, i + 1)) for i, suffix in enumerate(GUIDED)]


def _floors(component: str, cases: tuple[Case, ...]) -> Floors:
    """PyTorch float16's metrics, by case and output; nothing for a component in float32."""
    return {
        (case.name + suffix, name): compare(case.outputs[name][part], output[part])
        for case in cases
        for name, output in case.fp16.items()
        for suffix, part in _parts(component)
    }


def _error_ratio(metrics: Metrics, fp16: Metrics | None, name: str, floors: Floors) -> float | None:
    """Our NRMSE over PyTorch float16's, or None where there is none to compare with.

    The floor is that of the same case, or of all cases together if that is larger: one pooled
    output is a short vector, on which PyTorch's error can be small by luck.
    """
    if fp16 is None or not fp16.finite:
        return None
    finite = [m.nrmse for (_, output), m in floors.items() if output == name and m.finite]
    floor = max(fp16.nrmse, math.sqrt(sum(n * n for n in finite) / len(finite)))
    if floor == 0:
        return 0.0 if metrics.nrmse == 0 else math.inf
    return metrics.nrmse / floor
