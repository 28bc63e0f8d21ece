"""Levels `generation` and `sanity`: an artifact's own pipelines beside the reference's runs."""

from __future__ import annotations

from collections.abc import Sequence

from convert.checkpoint.pipeline import pipeline_config
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.process.progress import Say, silent
from verify.judge.checks import PICTURE_LEVELS, PIPELINE, Check, failed
from verify.judge.rules import Rules
from verify.levels.generation import Candidate, Generation, check_pictures
from verify.levels.subject import Subject
from verify.question import Question
from verify.reference.recording import SMALLEST
from verify.sampling.pipeline import open_network
from verify.sampling.sampling import Trace, kinds_of, settings_for, trace_all


def require_whole(subject: Subject) -> None:
    """Raise InputError unless all components are looked at that pictures need."""
    absent = [
        name
        for name in subject.source.components
        if name not in subject.artifact.expected and not COMPONENTS[name].is_optional
    ]
    if absent:
        raise InputError(
            f"pictures need {', '.join(absent)}, too",
            hint="Leave out --component, or --level generation and sanity.",
        )


def require_traces(traces: Sequence[Trace], subject: Subject) -> None:
    """Raise InputError unless there are whole runs, and of the artifact's size."""
    if not traces:
        raise InputError("no pictures were recorded", hint="Leave out generation and sanity.")
    for trace in traces:
        if subject.resolution not in (None, trace.resolution):
            raise InputError(
                f"the pictures were recorded for {trace.resolution}, "
                f"the artifact {subject.resolution}"
            )


def traces_for(subject: Subject, question: Question, *, say: Say = silent) -> tuple[Trace, ...]:
    """Run the reference, of every kind that the artifact can do. Raises as `trace_all` does."""
    kinds, embeddings = kinds_of(subject.artifact.packages), subject.source.embeddings
    return trace_all(
        subject.source,
        settings_for(question.recipe, kinds, embeddings=embeddings),
        subject.resolution or SMALLEST,
        device=question.device,
        say=say,
    )


def check_whole_runs(
    subject: Subject,
    traces: Sequence[Trace],
    question: Question,
    rules: Rules,
    *,
    failing: bool = False,
    say: Say = silent,
) -> tuple[list[Check], tuple[Generation, ...]]:
    """The levels among `question.levels`, with the settings that the artifact itself claims.

    Args:
        failing: something failed already. That the artifact then cannot be run is a failure like
            the others; else it is an error.

    Raises:
        CannotExecute, InputError: what looks right cannot be run.
    """
    artifact = subject.artifact
    level = next(level for level in PICTURE_LEVELS if level in question.levels)
    missing = ", ".join(artifact.missing)
    if missing:
        return [failed(level, PIPELINE, "run", "runs", f"{missing} missing")], ()
    config = artifact.pipeline or pipeline_config(subject.source)
    tokenizers = {name: artifact.path for name in config["pad_tokens"]}
    runner = question.runner
    try:
        networks = {n: open_network(runner, f, n) for n, f in artifact.packages.items()}
        candidate = Candidate(networks, config, tokenizers)
        return check_pictures(candidate, traces, rules, question.levels, name=runner.name, say=say)
    except (CannotExecute, InputError) as error:
        if not failing:
            raise
        # What is wrong has been said already, where it can be told.
        return [failed(level, PIPELINE, "run", "runs", error.problem)], ()
