"""A run's artifacts proven: what is not known yet is done, once, and put together for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convert.files.cache import Cache
from convert.process.progress import Progress
from convert.run.run import Result
from convert.values import LEVELS, Effort, Level, Resolution
from verify.judge.checks import Check, failed, worst
from verify.proof.keep import Findings, found
from verify.proof.processes import do_all
from verify.proof.scheme import TRUE_TIMESTEPS, Execution, execution, small_sizes, true_steps
from verify.proof.shipped import Shipped, members_of
from verify.proof.tasks import ProofContext, ProofTask, Tasks
from verify.reference.recording import SMALLEST


@dataclass(frozen=True)
class Proven:
    """All that was found of one artifact.

    Attributes:
        checks: level by level.
        evidence: what was done of each component and found right, in the words of reports.
        generations: of `verify.reports.images.generation_json`.
        rounding: by component, the ops that rounding costs most.
        images: PNG files, by the paths that `generations` has.
    """

    checks: tuple[Check, ...]
    evidence: Mapping[str, list[str]]
    generations: tuple[dict[str, Any], ...] = ()
    rounding: Mapping[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Line:
    """What a package needs to be proven; tasks that others need, too, are equal to theirs."""

    member: Shipped
    package: ProofTask
    numbers: ProofTask | None = None
    decoded: ProofTask | None = None
    true: ProofTask | None = None  # the look at the true size, at this package or another like it


def prove(
    context: ProofContext,
    results: Sequence[Result],
    effort: Effort,
    cache: Cache,
    progress: Progress,
) -> dict[str, Proven]:
    """What is to be known of every artifact, by its name; what is known already is not done again.

    Raises:
        CannotExecute, InputError: what looks right cannot be read or run.
    """
    members = members_of(results, context.checkpoint)
    tasks = Tasks(context)
    lines = [*_lines(tasks, members, effort, cache)]
    folders = {m.artifact.name: tasks.artifact(m) for m in reversed(members)}
    looking = [line.package for line in lines]
    if "structure" in context.levels:
        looking += folders.values()
    do_all(context, cache, _once(looking), "Weights and graphs", progress)
    done = _Done(cache)
    broken = {line.package.key for line in lines if done.verdict(line.package) == "fail"}
    if context.compares:
        _execute(context, lines, broken, cache, progress)
    pictures: dict[str, ProofTask] = {}
    if context.makes_pictures:
        pictures = _make_pictures(context, tasks, lines, folders, done, cache, progress)
    proven = {}
    for name, folder in folders.items():
        own = [line for line in lines if line.member.artifact.name == name]
        proven[name] = _together(context, folder, own, pictures.get(name), done)
    return {str(r.manifest["artifact"]): proven[str(r.manifest["artifact"])] for r in results}


class _Done:
    """What has been found, read once."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._found: dict[str, Findings] = {}

    def of(self, task: ProofTask | None) -> Findings:
        """What came of a task; nothing of one that was not asked for."""
        if task is None:
            return Findings(())
        if task.key not in self._found:
            self._found[task.key] = found(self.cache, task.key) or Findings(())
        return self._found[task.key]

    def verdict(self, task: ProofTask) -> str:
        """The worst of a task's checks."""
        return worst(check.verdict for check in self.of(task).checks)


def _lines(
    tasks: Tasks, members: Sequence[Shipped], effort: Effort, cache: Cache
) -> Iterator[_Line]:
    context = tasks.context
    executions: list[Execution | None] = [None] * len(members)
    if context.compares:
        small: Mapping[Resolution, Resolution | None] = {}
        if effort != "thorough" and "graph" in context.levels:
            # Without the level graph nothing ties a small program to the one that is shipped.
            small = small_sizes(members, context.checkpoint, cache)
        executions = _executions(members, effort, small)
    lines = []
    for member, executed in zip(members, executions, strict=True):
        line = _Line(member, tasks.package(member, executed))
        if executed is not None:
            line.numbers = tasks.numbers(member, executed)
            if member.is_compressed:
                line.decoded = tasks.decoded(member, executed)
        lines.append(line)
    if effort == "standard":
        _look_at_true_sizes(tasks, lines, cache)
    yield from lines


def _executions(
    members: Sequence[Shipped], effort: Effort, small: Mapping[Resolution, Resolution | None]
) -> list[Execution | None]:
    """How the numbers of each package are had; those of text encoders at one size for all."""
    made = [execution(m, effort, small.get(m.resolution)) for m in members]
    sized = (e.size for m, e in zip(members, made, strict=True) if m.size is not None)
    first = next(sized, SMALLEST)
    return [
        replace(e, size=first) if m.size is None else e for m, e in zip(members, made, strict=True)
    ]


def _look_at_true_sizes(tasks: Tasks, lines: Sequence[_Line], cache: Cache) -> None:
    """Choose for each network of each attention the package that is executed as it is.

    One that has been, if there is one; else of the artifact with the most of its weights left.
    """
    groups: dict[tuple[str, str | None, bool], list[_Line]] = {}
    for line in lines:
        member, executed = line.member, line.numbers and line.numbers.execution
        if executed is not None and executed.probe:
            key = member.component, member.attention, member.is_half
            groups.setdefault(key, []).append(line)
    for group in groups.values():
        made = [
            tasks.numbers(line.member, Execution(line.member.resolution, TRUE_TIMESTEPS), own=True)
            for line in group
        ]
        known = [task for task in made if found(cache, task.key) is not None]
        stand = known[0] if known else max(made, key=lambda task: _kept_of(task.member))
        for line in group:
            line.true = stand


def _kept_of(member: Shipped) -> int:
    """Bytes of all weights of a package's artifact: what compression has left of them."""
    files = member.artifact.files.items()
    return sum(int(facts["size"]) for name, facts in files if name.endswith("weight.bin"))


def _execute(
    context: ProofContext,
    lines: Sequence[_Line],
    broken: set[str],
    cache: Cache,
    progress: Progress,
) -> None:
    """Level conversion and compression, and what the reference has to do for them."""
    wanted = [
        replace(task, tolerant=task.tolerant or line.package.key in broken)
        for line in lines
        for task in (line.decoded, line.numbers, line.true)
        if task is not None and (task is not line.true or task.member is line.member)
    ]
    missing = [task for task in _once(wanted) if found(cache, task.key) is None]
    recordings = [_recording(task) for task in missing]
    do_all(context, cache, _once(recordings), "Reference", progress)
    decoded = [task for task in missing if task.kind == "decoded"]
    do_all(context, cache, decoded, "Decoded weights", progress)
    executed = [task for task in missing if task.kind == "numbers"]
    do_all(context, cache, executed, "Executing", progress)


def _recording(task: ProofTask) -> ProofTask:
    """The run of the reference that a task needs."""
    assert task.recording is not None
    return replace(task, kind="recording", key=task.recording)


def _make_pictures(
    context: ProofContext,
    tasks: Tasks,
    lines: Sequence[_Line],
    folders: Mapping[str, ProofTask],
    done: _Done,
    cache: Cache,
    progress: Progress,
) -> dict[str, ProofTask]:
    """Levels generation and sanity of every artifact."""
    failing = {
        line.member.artifact.name
        for line in lines
        for task in (line.package, line.numbers, line.true)
        if task is not None and done.verdict(task) == "fail"
    }
    failing |= {name for name, folder in folders.items() if done.verdict(folder) == "fail"}
    pictures = {
        name: replace(tasks.pictures(folder.member), tolerant=name in failing)
        for name, folder in folders.items()
    }
    missing = [task for task in pictures.values() if found(cache, task.key) is None]
    traces = [tasks.traces(task.member) for task in missing]
    do_all(context, cache, _once(traces), "Reference pictures", progress)
    do_all(context, cache, missing, "Pictures", progress)
    return pictures


def _once(tasks: Iterable[ProofTask]) -> list[ProofTask]:
    """Each task once; of equal ones the first that is of a sound package."""
    chosen: dict[str, ProofTask] = {}
    for task in tasks:
        known = chosen.get(task.key)
        if known is None or (known.tolerant and not task.tolerant):
            chosen[task.key] = task
    return list(chosen.values())


# ---- put together ----


def _together(
    context: ProofContext,
    folder: ProofTask,
    lines: Sequence[_Line],
    pictures: ProofTask | None,
    done: _Done,
) -> Proven:
    checks: list[Check] = [*done.of(folder).checks]
    if "structure" not in context.levels:
        missing = folder.member.artifact.missing
        checks += [failed("conversion", c, "file", "is there", "it is missing") for c in missing]
    evidence, rounding = {}, {}
    for line in lines:
        own = [*_own_checks(line, done)]
        checks += own
        evidence[line.member.component] = [*_words(line, own, done)]
        if line.numbers is not None and (ops := done.of(line.numbers).rounding):
            rounding[line.member.component] = ops
    whole = done.of(pictures)
    checks += whole.checks
    checks.sort(key=lambda check: LEVELS.index(check.level))
    return Proven(tuple(checks), evidence, whole.generations, rounding, whole.images)


def _own_checks(line: _Line, done: _Done) -> Iterator[Check]:
    yield from done.of(line.package).checks
    for task in (line.decoded, line.numbers):
        yield from done.of(task).checks
    if line.true is None:
        return
    true = done.of(line.true).checks
    if line.true.member.artifact.name == line.member.artifact.name:
        yield from true
    else:
        yield _told(line, line.true, true)


def _told(line: _Line, true: ProofTask, checks: Sequence[Check]) -> Check:
    """What was found at the true size of another package, in one check."""
    assert true.execution is not None
    component, verdict = line.member.component, worst(check.verdict for check in checks)
    wrong = next((check for check in checks if check.verdict != "pass"), None)
    message = f"{wrong.case}: {wrong.message}" if wrong is not None else ""
    gate = f"passes for {true.member.artifact.name}, whose graph this one is but for sizes"
    return Check(
        "conversion",
        component,
        f"the true size, {true_steps(component)}",
        gate,
        verdict,
        message=message,
        size=true.execution.size,
    )


def _words(line: _Line, checks: Sequence[Check], done: _Done) -> Iterator[str]:
    """What was done of a package and found right."""
    levels: tuple[Level, ...] = ("weights", "graph")
    for level in levels:
        of_it = [check.verdict for check in checks if check.level == level]
        if of_it and worst(of_it) == "pass":
            yield level
    if line.numbers is not None and done.verdict(line.numbers) == "pass":
        executed = line.numbers.execution
        assert executed is not None
        yield "numbers" if line.member.size is None else f"numbers {executed.size}"
    if line.true is not None and done.verdict(line.true) == "pass":
        assert line.true.execution is not None
        told = f"{true_steps(line.member.component)} {line.true.execution.size}"
        name = line.true.member.artifact.name
        yield told if name == line.member.artifact.name else f"{told} of {name}"
