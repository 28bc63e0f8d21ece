"""Verify an artifact: structure, then each component by itself, then whole runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError
from convert.files.disk import digest_file
from convert.process.progress import Say, silent
from verify.artifact import probe
from verify.bisect.ops import worst_ops_of
from verify.equivalence.sizes import small_size
from verify.golden import Golden, require_same_checkpoint, source_files
from verify.judge.checks import Check, Results, failed, versions, worst
from verify.judge.rules import Rules
from verify.levels.components import check_components, recording_for, require_recording
from verify.levels.folder import check_artifact
from verify.levels.generation import Generation
from verify.levels.graph import check_graphs
from verify.levels.structure import check_package
from verify.levels.subject import Subject, open_subject, probed
from verify.levels.weights import check_weights
from verify.levels.whole_runs import check_whole_runs, require_traces, require_whole, traces_for
from verify.proof.alone import Executed, at_size, executed, words_of
from verify.question import Evidence, Question, require_possible
from verify.reference.reference import how_read


def verify(
    path: Path,
    evidence: Evidence | Checkpoint | Golden,
    question: Question | None = None,
    *,
    say: Say = silent,
) -> Results:
    """Check an artifact folder, or one package or compiled model, against its checkpoint.

    Args:
        evidence: the checkpoint, a golden bundle, or these with what was recorded before.
        question: levels structure, conversion and compression of every component if None.
        say: is told in a few words what is being done.

    Raises:
        InputError: nothing to verify at `path`, or an argument that does not fit it.
        CannotExecute: a package that cannot be read or run.
    """
    path, question, evidence = Path(path), question or Question(), Evidence.of(evidence)
    require_possible(path, question, golden=evidence.golden is not None)
    runner = question.runner  # or an error before anything is read
    subject = _fitting(path, evidence, question)
    question = _at_its_size(question, subject, evidence)
    scope = runner.scope + _proviso(evidence, question)
    rules = question.rules(subject.bits, where=path)
    checks: list[Check] = []
    if "structure" in question.levels:
        checks += _check_structure(subject, say)
    if "weights" in question.levels:
        for component, program in subject.programs.items():
            checks += check_weights(program, component, subject.source, say=say)
    generations: tuple[Generation, ...] = ()
    rounding = {}
    with _executed(subject, evidence, question, rules, _broken(checks), say) as made:
        checks += made.checks
        if question.makes_pictures:
            found, generations = _check_pictures(subject, evidence, question, rules, checks, say)
            checks += found
        if generations and made.recording is not None:
            say("op by op")
            rounding = _worst_ops(made, _broken(checks), question.device)
    if "structure" not in question.levels:
        for component in subject.artifact.missing:
            checks.append(failed("conversion", component, "file", "is there", "it is missing"))
    return Results(
        artifact=subject.artifact.name,
        source=subject.source.name,
        runtime=runner.name,
        scope=scope,
        resolution=subject.resolution,
        policy=question.policy.version,
        checks=tuple(checks),
        versions=versions(),
        code=question.policy.made_by,
        attention=subject.artifact.claims.get("attention"),
        bits=rules.bits,
        compressed=subject.compressed,
        effort=question.effort if evidence.golden is None and question.probe is None else None,
        evidence=_done(checks, made),
        generations=generations,
        worst_ops=rounding,
    )


@contextmanager
def _executed(
    subject: Subject,
    evidence: Evidence,
    question: Question,
    rules: Rules,
    broken: Collection[str],
    say: Say,
) -> Iterator[Executed]:
    """Levels graph, conversion and compression, by whatever is executed for them."""
    if not question.compares or not subject.programs:
        checks = [*check_graphs(subject, say=say)] if "graph" in question.levels else []
        yield Executed(checks, {}, evidence.recorded, subject)
    elif question.effort != "thorough" and evidence.recorded is None:
        with executed(subject, question, rules, broken=broken, say=say) as found:
            yield found
    else:
        with probed(subject, question.probe) as standing:
            checks = []
            if "graph" in question.levels:
                programs = standing.programs if question.probe else None
                checks += check_graphs(subject, executed=programs, say=say)
            failing = {*broken, *_broken(checks)}
            recording = evidence.recorded or recording_for(standing, question, say=say)
            of = check_components(standing, recording, question, rules, broken=failing, say=say)
            words = words_of(of, standing, recording.resolution)
            checks += [at_size(check, question.probe) for check in of]
            yield Executed(checks, words, recording, standing)


def _check_pictures(
    subject: Subject,
    evidence: Evidence,
    question: Question,
    rules: Rules,
    checks: Sequence[Check],
    say: Say,
) -> tuple[list[Check], tuple[Generation, ...]]:
    """Levels generation and sanity."""
    traces = evidence.traced
    if traces is None:
        traces = traces_for(subject, question, say=say)
    failing = bool(_broken(checks))
    return check_whole_runs(subject, traces, question, rules, failing=failing, say=say)


def _done(checks: Sequence[Check], executed: Executed) -> dict[str, list[str]]:
    """What was done of each component and found right, in the words of reports."""
    found: dict[str, list[str]] = {}
    for component in executed.programs.programs:
        for level in ("weights", "graph"):
            own = [c.verdict for c in checks if (c.level, c.component) == (level, component)]
            if own and worst(own) == "pass":
                found.setdefault(component, []).append(level)
        if words := executed.evidence.get(component):
            found.setdefault(component, []).extend(words)
    return found


def _fitting(path: Path, evidence: Evidence, question: Question) -> Subject:
    """The opened artifact, where evidence and question fit it; raises InputError if they do not."""
    golden, source = evidence.golden, evidence.source
    if golden is not None:
        made_from = source_files(path)
        if made_from:
            require_same_checkpoint(golden, made_from, "the artifact's")
    subject = open_subject(path, evidence.reference, question.components)
    if question.compares and evidence.recorded is not None:
        require_recording(evidence.recorded, subject, question.probe or subject.resolution)
    if question.makes_pictures:
        require_whole(subject)
        if evidence.traced is not None:
            require_traces(evidence.traced, subject)
    if question.probe is not None:
        probe.require_probeable(subject.programs)
    if golden is not None and source is not None:
        digests = {name: digest_file(file) for name, file in source.files.items()}
        require_same_checkpoint(golden, digests, source.name)
    return subject


def _at_its_size(question: Question, subject: Subject, evidence: Evidence) -> Question:
    """The question with a size to probe at by which programs can be told from one another.

    That matters to the level `graph`, and where nothing was recorded for another size.
    """
    if question.probe is None or "graph" not in question.levels or evidence.recorded is not None:
        return question
    try:
        size = small_size(subject.source, {n: [p] for n, p in subject.programs.items()})
    except (CannotExecute, InputError):
        return question  # the level says why
    return replace(question, probe=size)


def _check_structure(subject: Subject, say: Say) -> Iterator[Check]:
    artifact = subject.artifact
    yield from check_artifact(artifact, subject.source)
    for component, program in subject.programs.items():
        say(f"structure of {component}")
        yield from check_package(
            program,
            component,
            subject.source,
            resolution=subject.resolution,
            claims=artifact.claims,
            asked=artifact.asked.get(component),
        )


def _worst_ops(
    executed: Executed, broken: Collection[str], device: str
) -> dict[str, list[dict[str, Any]]]:
    """The ops that rounding costs most, in components that have not failed."""
    assert executed.recording is not None
    subject = executed.programs
    sound = {name: p for name, p in subject.programs.items() if name not in broken}
    first = {name: cases[0].inputs for name, cases in executed.recording.cases.items()}
    return worst_ops_of(sound, subject.source, first, device=device)


def _broken(checks: Iterable[Check]) -> set[str]:
    """The components that failed a check."""
    return {check.component for check in checks if check.verdict == "fail"}


def _proviso(evidence: Evidence, question: Question) -> str:
    """What the runtime's scope does not say of this verification."""
    text = ""
    if question.probe is not None:
        text += "; compared were " + probe.SCOPE.format(question.probe)
    if evidence.golden is not None:
        made_by = evidence.golden.versions
        told = ", ".join(f"{name} {made_by.get(name)}" for name in ("torch", "diffusers"))
        text += f"; the reference is a recording, made with {told}"
    if evidence.golden is None:
        text += how_read(evidence.reference)
    return text
