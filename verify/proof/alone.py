"""One artifact, or one package by itself, at the efforts that execute it at a small size."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.process.progress import Say, silent
from convert.values import Resolution
from verify.artifact.interface import precision
from verify.equivalence.sizes import small_size
from verify.judge.checks import Check, worst
from verify.judge.rules import Rules
from verify.levels.components import check_components, recording_for
from verify.levels.compression import compressed_weights
from verify.levels.graph import check_graphs
from verify.levels.subject import Subject, probed
from verify.proof.scheme import SMALL_TIMESTEPS, TRUE_TIMESTEPS, pixels, true_steps
from verify.question import Question
from verify.reference.recording import Denoising, Recording, record


@dataclass(frozen=True)
class Executed:
    """What executing one artifact has shown.

    Attributes:
        checks: of levels graph, conversion and compression.
        evidence: by component, what was executed and found right, in the words of reports.
        recording: that it was compared with.
        programs: what was executed.
    """

    checks: list[Check]
    evidence: dict[str, list[str]]
    recording: Recording | None
    programs: Subject


@contextmanager
def executed(
    subject: Subject,
    question: Question,
    rules: Rules,
    *,
    broken: Collection[str] = (),
    say: Say = silent,
) -> Iterator[Executed]:
    """Execute an artifact as much as the question's effort, quick or standard, asks for.

    Args:
        broken: components that failed already.

    Raises:
        CannotExecute, InputError: what looks right cannot be run.
    """
    timesteps = replace(question, timesteps=question.timesteps or SMALL_TIMESTEPS)
    with _standing(subject, question) as (standing, size):
        checks: list[Check] = []
        if "graph" in question.levels:
            programs = standing.programs if size is not None else None
            checks += check_graphs(subject, executed=programs, say=say)
        failing = {*broken, *(check.component for check in checks if check.verdict == "fail")}
        recording = recording_for(standing, timesteps, say=say)
        found = check_components(standing, recording, question, rules, broken=failing, say=say)
        evidence = words_of(found, subject, recording.resolution)
        checks += [at_size(check, size) for check in found]
        if size is not None and question.effort == "standard":
            more = _at_true_size(subject, question, rules, failing, say)
            for component, word in _true_words(more, subject).items():
                evidence[component].append(word)
            checks += more
        yield Executed(checks, evidence, recording, standing)


@contextmanager
def _standing(subject: Subject, question: Question) -> Iterator[tuple[Subject, Resolution | None]]:
    """What is executed for a subject, and at which size if that is not its own."""
    size = _small(subject) if "graph" in question.levels else None
    with ExitStack() as stack:
        standing = subject
        try:
            standing = stack.enter_context(probed(subject, size))
        except InputError:  # its weights are not arranged as ours, so it is executed itself
            size = None
        yield standing, size


def _small(subject: Subject) -> Resolution | None:
    """A size that is smaller than the subject's and tells its programs' sizes apart, if any."""
    try:
        size = small_size(subject.source, {n: [p] for n, p in subject.programs.items()})
    except (CannotExecute, InputError):
        return None
    own = subject.resolution
    return size if own is not None and pixels(size) < pixels(own) else None


def _at_true_size(
    subject: Subject, question: Question, rules: Rules, broken: Collection[str], say: Say
) -> list[Check]:
    """Every component that has a size, executed once as it is, beside its own decoded weights."""
    source = subject.source
    sized = {n: p for n, p in subject.programs.items() if COMPONENTS[n].has_resolution}

    def weights(component: str) -> dict[str, Tensor]:
        if component not in sized:
            return {}
        decoded = compressed_weights(sized[component], source, component)
        return {name: one.value for name, one in decoded.items()}

    assert subject.resolution is not None
    recording = record(
        source,
        sized,
        resolution=subject.resolution,
        fp16=[name for name, program in sized.items() if precision(program) == "fp16"],
        denoising=Denoising(timesteps=TRUE_TIMESTEPS),
        weights=weights,
        device=question.device,
        say=say,
    )
    own = replace(subject, programs=sized)
    # The recording's outputs are of the decoded weights already.
    asked = replace(question, levels=["conversion"])
    return check_components(own, recording, asked, rules, decoded=True, broken=broken, say=say)


def at_size(check: Check, size: Resolution | None) -> Check:
    """The check with the size at which a program stood for its package, where it did."""
    sized = check.component in COMPONENTS and COMPONENTS[check.component].has_resolution
    return replace(check, size=size) if sized else check


def words_of(checks: Collection[Check], subject: Subject, size: Resolution) -> dict[str, list[str]]:
    """What was executed in a subject's place and found right, by component."""
    words: dict[str, list[str]] = {}
    for name in subject.programs:
        own = [check.verdict for check in checks if check.component == name]
        word = f"numbers {size}" if COMPONENTS[name].has_resolution else "numbers"
        words[name] = [word] if own and worst(own) == "pass" else []
    return words


def _true_words(checks: Collection[Check], subject: Subject) -> dict[str, str]:
    """The same of what was executed as it is."""
    words = {}
    for name in dict.fromkeys(check.component for check in checks):
        if worst(check.verdict for check in checks if check.component == name) == "pass":
            words[name] = f"{true_steps(name)} {subject.resolution}"
    return words
