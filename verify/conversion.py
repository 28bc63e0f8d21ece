"""Level `conversion`: each component's outputs against the same weights in PyTorch float32.

Teacher-forced: every run of a component gets the inputs of the recorded reference run, so errors
do not add up from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from convert.errors import CannotExecute
from verify.checks import Check, failed
from verify.metrics import Metrics, compare
from verify.mil import Program
from verify.policy import Policy
from verify.recording import Case, Progress
from verify.runtimes import Runtime

GUIDED = (" uncond", " cond")  # the halves of the UNet's batch


def check_conversion(
    program: Program,
    component: str,
    cases: tuple[Case, ...],
    runtime: Runtime,
    policy: Policy,
    *,
    progress: Progress | None = None,
) -> Iterator[Check]:
    """Run a package on the recorded cases and judge every output of every case.

    Raises:
        CannotExecute: the runtime cannot read or run the package, or there was nothing to compare.
    """
    if not cases:
        raise CannotExecute(f"no recorded case of {component}", where=program.path)
    problem = _misfit(program, cases[0])
    if problem:
        yield failed("conversion", component, "interface", "fits the reference", problem)
        return
    for case in cases:
        if progress:
            progress(f"{runtime.name} {component}, {case.name}")
        outputs = runtime.run(Path(program.path), case.inputs)
        if not outputs:
            raise CannotExecute("it gave no output at all", where=program.path)
        yield from _compare(component, case, outputs, policy)


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
    component: str, case: Case, outputs: Mapping[str, np.ndarray], policy: Policy
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
            fp16 = _fp16(case, name, part)
            metrics = compare(reference[part], output[part])
            judged = policy.judge("conversion", component, metrics, fp16)
            yield Check(
                level="conversion",
                component=component,
                case=case.name + suffix,
                output=name,
                metrics=metrics,
                fp16=fp16,
                gate=judged.gate,
                verdict=judged.verdict,
                message=judged.message,
            )


def _parts(component: str) -> list[tuple[str, slice]]:
    """The parts of an output's batch that are judged by themselves."""
    if component != "unet":
        return [("", slice(None))]
    return [(suffix, slice(i, i + 1)) for i, suffix in enumerate(GUIDED)]


def _fp16(case: Case, name: str, part: slice) -> Metrics | None:
    floor: Tensor | None = case.fp16.get(name)
    return None if floor is None else compare(case.outputs[name][part], floor[part])
