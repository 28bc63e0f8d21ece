"""Levels `conversion` and `compression`, component by component, on recorded cases."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from convert.errors import CannotExecute, InputError
from convert.process.progress import Say, silent
from convert.values import Resolution
from verify.artifact import probe
from verify.artifact.interface import is_compressed, precision
from verify.judge.checks import Check, failed
from verify.judge.rules import Rules
from verify.levels.compression import check_compression, compressed_weights, decoded_cases
from verify.levels.conversion import check_conversion
from verify.levels.subject import Subject
from verify.question import Question
from verify.reference.recording import SMALLEST, Case, Denoising, Recording, record
from verify.reference.schedule import TIMESTEPS
from verify.sampling.pipeline import open_network


def require_recording(recording: Recording, subject: Subject, size: Resolution | None) -> None:
    """Raise InputError unless a recording fits what is compared.

    Args:
        size: at which it is compared; any will do if None.
    """
    if size not in (None, recording.resolution):
        raise InputError(f"the recording is for {recording.resolution}, the artifact {size}")
    for name, program in subject.programs.items():
        cases = recording.cases.get(name)
        if not cases:
            raise InputError(f"the recording has no {name}")
        if precision(program) == "fp16" and not all(case.fp16 for case in cases):
            raise InputError(f"the recording lacks PyTorch float16's outputs of {name}")


def recording_for(subject: Subject, question: Question, *, say: Say = silent) -> Recording:
    """Record what the subject is compared on. Raises as `record` does."""
    default = TIMESTEPS if question.probe is None else probe.TIMESTEPS
    return record(
        subject.source,
        subject.programs,
        resolution=subject.resolution or SMALLEST,
        fp16=[name for name, p in subject.programs.items() if precision(p) == "fp16"],
        denoising=Denoising(timesteps=question.timesteps or default),
        device=question.device,
        say=say,
    )


def check_components(
    subject: Subject,
    recording: Recording,
    question: Question,
    rules: Rules,
    *,
    decoded: bool = False,
    broken: Collection[str] = (),
    say: Say = silent,
) -> list[Check]:
    """The levels among `question.levels` of every component that is there.

    Args:
        decoded: the recording is of the programs' own decoded weights.
        broken: components that failed already. What cannot be run of them is a failure like the
            others, and the rest is still checked; of any other it is an error.

    Raises:
        CannotExecute, InputError: a component that looks right and cannot be run.
    """
    checks: list[Check] = []
    for component, program in subject.programs.items():
        cases = recording.cases[component]
        if precision(program) != "fp16":  # a golden bundle has it for all components
            cases = tuple(replace(case, fp16={}) for case in cases)
        try:
            checks += _check(subject, component, cases, question, rules, decoded, say)
        except (CannotExecute, InputError) as error:
            if component not in broken:
                raise
            checks.append(failed("conversion", component, "run", "runs", error.problem))
    return checks


def _check(
    subject: Subject,
    component: str,
    cases: tuple[Case, ...],
    question: Question,
    rules: Rules,
    decoded: bool,
    say: Say,
) -> Iterator[Check]:
    program, source = subject.programs[component], subject.source
    if is_compressed(program) and not decoded and not source.part(component).tensors:
        yield from _check_outputs_alone(subject, component, cases, question, rules)
        return
    weights = {} if decoded else compressed_weights(program, source, component)
    if weights:
        original = cases
        cases = decoded_cases(source, component, cases, weights, device=question.device, say=say)
        if "compression" in question.levels:
            yield from check_compression(source, component, weights, original, cases, rules)
    if "conversion" in question.levels:
        yield from check_conversion(
            program, component, cases, question.runner, rules.policy, say=say
        )


def _check_outputs_alone(
    subject: Subject,
    component: str,
    cases: tuple[Case, ...],
    question: Question,
    rules: Rules,
) -> Iterator[Check]:
    """A compressed component where the checkpoint's weights are absent."""
    if "conversion" in question.levels:
        text = "its weights are compressed, and what they do in PyTorch needs the checkpoint"
        gate = "like its own decoded weights in PyTorch"
        yield Check("conversion", component, "run", gate, "indeterminate", message=text)
    if "compression" in question.levels:
        model = open_network(question.runner, Path(subject.programs[component].path), component)
        ran = tuple(replace(case, outputs=dict(model(case.inputs))) for case in cases)
        yield from check_compression(subject.source, component, {}, cases, ran, rules)
