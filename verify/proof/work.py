"""A task done: the part of a proof that worker processes do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from convert.errors import CannotExecute, InputError
from convert.files.cache import Cache, key_of
from convert.process.memory import give_back
from convert.process.progress import Advance, Say, silent
from verify.artifact.probe import probe_package
from verify.bisect.ops import worst_ops_of
from verify.judge.checks import PIPELINE, Check, failed
from verify.judge.policy import load_policy
from verify.judge.rules import Rules
from verify.levels.compression import (
    Decoded,
    check_compression,
    compressed_weights,
    decoded_cases,
)
from verify.levels.conversion import check_conversion
from verify.levels.folder import check_artifact
from verify.levels.graph import check_graph
from verify.levels.structure import check_package
from verify.levels.subject import open_subject
from verify.levels.weights import check_weights
from verify.levels.whole_runs import check_whole_runs
from verify.mil import Program, load_program
from verify.proof.keep import Findings, kept, made_by
from verify.proof.shipped import Shipped
from verify.proof.tasks import ProofContext, ProofTask
from verify.question import Question
from verify.reference.kept import kept_recording
from verify.reference.recording import Case, Recording, record
from verify.reports.images import generation_json
from verify.reports.report import pictures_of
from verify.sampling.kept import kept_traces
from verify.sampling.sampling import Trace, kinds_of, settings_for, trace_all
from verify.weights.find import FoundWeights, find_weights


def worker(context: ProofContext, threads: int | None) -> Callable[[ProofTask, Advance], None]:
    """What a worker process does: a function of a task, which leaves what it finds in the cache.

    Args:
        threads: of PyTorch; as many as it likes if None.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bench = Bench(context, Cache(context.cache).__enter__())  # left to the next if it is killed

    return bench.do


class Bench:
    """Where tasks are done. What a task needs of another is there already, or made on the way."""

    def __init__(self, context: ProofContext, cache: Cache) -> None:
        self.context, self.cache, self.source = context, cache, context.checkpoint
        self.rules = Rules(load_policy())
        self.say: Say = silent

    def do(self, task: ProofTask, advance: Advance) -> None:
        """Do a task and keep what was found.

        Args:
            advance: is told the steps, of which a task has as many as `steps` says.

        Raises:
            CannotExecute, InputError: what looks right cannot be read or run.
        """
        self.say = lambda _: advance(1)
        if task.kind == "recording":
            self.recording(task)
        elif task.kind == "traces":
            self.traces(task)
        else:
            kept(self.cache, task.key, partial(self.find, task))
        if task.kind in ("artifact", "package"):
            advance(1)
        give_back()

    def find(self, task: ProofTask) -> Findings:
        """What comes of a task; that a broken package cannot be run is a finding like others."""
        try:
            return cast("Findings", getattr(self, f"find_{task.kind}")(task))
        except (CannotExecute, InputError) as error:
            if not task.tolerant:
                raise
            if task.kind == "pictures":
                check = failed("generation", PIPELINE, "run", "runs", error.problem)
            else:
                component = task.member.component
                check = failed("conversion", component, "run", "runs", error.problem)
            return Findings((check,))

    # ---- one kind of task each ----

    def find_artifact(self, task: ProofTask) -> Findings:
        """Level structure of the folder itself."""
        artifact, remember = task.member.artifact, self.cache.told
        return Findings(tuple(check_artifact(artifact, self.source, remember=remember)))

    def find_package(self, task: ProofTask) -> Findings:
        """Levels structure, weights and graph of a package."""
        member, levels = task.member, self.context.levels
        component, claims, size = member.component, member.claims, member.size
        program = load_program(member.package)
        checks: list[Check] = []
        if "structure" in levels:
            asked = member.artifact.asked.get(component)
            checks += check_package(
                program,
                component,
                self.source,
                resolution=size,
                claims=claims,
                asked=asked,
                remember=self.cache.told,
            )
        if "weights" in levels:
            checks += self.weights(program, member)
        if "graph" in levels:
            executed = None if task.probe is None else self.probe_if_possible(task)
            checks += check_graph(
                program, component, self.source, resolution=size, claims=claims, executed=executed
            )
        return Findings(tuple(checks))

    def find_decoded(self, task: ProofTask) -> Findings:
        """Level compression, and on the way what PyTorch makes of the decoded weights."""
        member, component = task.member, task.member.component
        cases = self.cases(self.recording(task), member)
        weights = compressed_weights(load_program(member.package), self.source, component)
        decoded = self.decoded(task, cases, lambda: weights)
        if "compression" not in self.context.levels:
            return Findings(())
        checks = check_compression(self.source, component, weights, cases, decoded, self.rules)
        return Findings(tuple(_at(checks, task)))

    def find_numbers(self, task: ProofTask) -> Findings:
        """Level conversion of what is executed."""
        member, component = task.member, task.member.component
        program = self.executed(task)
        cases = self.cases(self.recording(task), member)
        if member.is_compressed and not task.own:
            package = member.package
            weights = partial(compressed_weights, load_program(package), self.source, component)
            cases = self.decoded(task, cases, weights)
        runtime, policy, say = self.context.runtime, self.rules.policy, self.say
        of = check_conversion(program, component, cases, runtime, policy, say=say)
        checks = tuple(_at(of, task))
        rounding: list[dict[str, Any]] = []
        if self.context.makes_pictures and all(check.verdict == "pass" for check in checks):
            first = {component: cases[0].inputs}
            found = worst_ops_of({component: program}, self.source, first)
            rounding = found.get(component, [])
        return Findings(checks, rounding=tuple(rounding))

    def find_pictures(self, task: ProofTask) -> Findings:
        """Levels generation and sanity: whole runs of an artifact."""
        artifact = task.member.artifact
        subject = open_subject(artifact.path, self.source, self.context.components)
        levels, asked = self.context.levels, self.context.asked
        question = Question(levels=levels, recipe=asked, runtime=self.context.runtime)
        traces = self.traces(task)
        checks, made = check_whole_runs(subject, traces, question, self.rules, say=self.say)
        generations = tuple(generation_json(one) for one in made)
        return Findings(tuple(checks), generations, images=pictures_of(made))

    # ---- what several of them need ----

    def recording(self, task: ProofTask) -> Recording:
        """The reference's run that a task is about."""
        context, execution = self.context, task.execution
        assert execution is not None
        assert task.recording is not None

        def decoded(component: str) -> dict[str, torch.Tensor]:
            if not task.own or component not in context.recorded(own=True):
                return {}
            program = load_program(task.member.artifact.packages[component])
            values = compressed_weights(program, self.source, component)
            return {name: one.value for name, one in values.items()}

        def make() -> Recording:
            return record(
                self.source,
                context.recorded(own=task.own),
                resolution=execution.size,
                fp16=context.half,
                denoising=context.denoising(execution),
                weights=decoded,
                device=context.device,
                say=self.say,
            )

        return kept_recording(self.cache, task.recording, make)

    def cases(self, recording: Recording, member: Shipped) -> tuple[Case, ...]:
        """A package's cases, with PyTorch float16's outputs where it computes in float16."""
        cases = recording.cases[member.component]
        return cases if member.is_half else tuple(replace(case, fp16={}) for case in cases)

    def decoded(
        self, task: ProofTask, cases: tuple[Case, ...], weights: Callable[[], Mapping[str, Decoded]]
    ) -> tuple[Case, ...]:
        """The cases with what PyTorch makes of a package's decoded weights."""
        member, component = task.member, task.member.component
        key = key_of(["decoded", task.recording, component, member.weights, made_by()])

        def make() -> Recording:
            device = self.context.device
            values = weights()
            made = decoded_cases(self.source, component, cases, values, device=device, say=self.say)
            return Recording(member.resolution, {component: made})

        return kept_recording(self.cache, key, make).cases[component]

    def weights(self, program: Program, member: Shipped) -> tuple[Check, ...]:
        """Level weights: once for all packages that keep the same values in the same places."""
        tensors = self.source.component_tensors(member.component)
        keys = self.source.tensor_keys(member.component, self.context.digests)
        places = _places(find_weights(program, tensors))
        key = key_of(["weights", places, member.weights, keys, made_by()])
        make = partial(check_weights, program, member.component, self.source)
        return kept(self.cache, key, lambda: Findings(tuple(make()))).checks

    def executed(self, task: ProofTask) -> Program:
        """The program whose numbers stand for a package's: itself, or its probe."""
        return load_program(task.member.package if task.probe is None else self.probe(task))

    def probe_if_possible(self, task: ProofTask) -> Program | None:
        """The package's probe; None where no such program can be made of it."""
        try:
            return load_program(self.probe(task))
        except (CannotExecute, InputError):
            return None

    def probe(self, task: ProofTask) -> Path:
        """A package for a small size around the weights of another."""
        member, execution = task.member, task.execution
        assert task.probe is not None
        assert execution is not None
        size = execution.size

        def fill(folder: Path) -> dict[str, str]:
            program, claims = load_program(member.package), member.claims
            made = probe_package(
                program, member.component, self.source, folder, size=size, claims=claims
            )
            return {"package": made.name}

        folder, facts = self.cache.entry("probes", task.probe, fill)
        return folder / facts["package"]

    def traces(self, task: ProofTask) -> tuple[Trace, ...]:
        """Whole runs of the reference at the artifact's size."""
        context = self.context
        assert task.recording is not None

        def make() -> tuple[Trace, ...]:
            kinds = kinds_of(context.components)
            settings = settings_for(context.asked, kinds, embeddings=self.source.embeddings)
            return trace_all(self.source, settings, task.member.resolution, say=self.say)

        return kept_traces(self.cache, task.recording, make)


def _at(checks: Iterable[Check], task: ProofTask) -> Iterator[Check]:
    """The checks with the size that they were had at, where it is not the package's own."""
    assert task.execution is not None
    size = task.execution.size
    for check in checks:
        yield check if size == task.member.size or not task.probe else replace(check, size=size)


def _places(found: FoundWeights) -> list[Any]:
    """Where a program keeps the checkpoint's values, and what it has beside them."""
    weights = {
        name: [
            one.place,
            one.form,
            list(one.shape),
            bool(one.uses),
            {part: _place(constant) for part, constant in one.parts.items()},
        ]
        for name, one in found.weights.items()
    }
    foreign = {name: _place(constant) for name, constant in found.foreign.items()}
    return [weights, found.missing, found.doubled, foreign]


def _place(constant: Any) -> list[Any]:
    kind = [constant.type.dtype, list(constant.type.shape)]
    if constant.file is not None:
        return [*kind, constant.offset]
    return [*kind, key_of(constant.array().tolist())]
