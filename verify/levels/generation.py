"""Levels `generation` and `sanity`: whole runs of an artifact beside those of the reference.

Free-running, the artifact's own errors are carried from step to step, as a user gets them;
teacher-forced, its UNet is given what the reference's was given at that step. Free-running pictures
may part for harmless reasons, so only uncompressed artifacts have a universal gate here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convert.errors import CannotExecute
from convert.process.progress import Say, silent
from verify.judge.checks import PIPELINE, Check
from verify.judge.image_metrics import ImageMetrics, compare_images
from verify.judge.metrics import Metrics, compare
from verify.judge.rules import Rules
from verify.levels.sanity import find_flaw
from verify.sampling.pipeline import NetworkFunction, build_pipeline
from verify.sampling.sampling import Settings, Trace, replay, to_uint8

SANE = "finite; neither black, nor of one colour, nor noise"


@dataclass(frozen=True)
class StepErrors:
    """The errors of one step."""

    timestep: float
    latents: Metrics  # after the step, free-running
    noise_pred: Metrics  # of the UNet on the reference's inputs


@dataclass(frozen=True)
class Generation:
    """One picture of both worlds, and how they came apart."""

    settings: Settings
    resolution: str
    reference: np.ndarray  # uint8 [H, W, 3]
    candidate: np.ndarray
    start: np.ndarray | None
    trajectory: tuple[StepErrors, ...]
    latents: Metrics  # of the last step
    image: Metrics  # of the pictures' values in 0…1
    similarity: ImageMetrics


class Candidate:
    """An artifact's networks as pipelines, one for each kind of run.

    Args:
        networks: by component, loaded.
        config: of `convert.checkpoint.pipeline`.
        tokenizers: folders of vocab.json and merges.txt.
    """

    def __init__(
        self,
        networks: Mapping[str, NetworkFunction],
        config: Mapping[str, Any],
        tokenizers: Mapping[str, Any],
    ) -> None:
        self.networks, self.config, self.tokenizers = networks, config, tokenizers
        self._pipelines: dict[tuple[str, str | None], Any] = {}

    def pipeline(self, settings: Settings) -> Any:
        """The pipeline for these settings."""
        key = settings.kind, settings.scheduler
        if key not in self._pipelines:
            self._pipelines[key] = build_pipeline(
                self.networks,
                self.config,
                self.tokenizers,
                scheduler=settings.scheduler,
                image_to_image=settings.kind == "image-to-image",
            )
        return self._pipelines[key]


def generate(
    candidate: Candidate, trace: Trace, *, name: str = "", say: Say = silent
) -> tuple[Generation, np.ndarray]:
    """Replay a trace; also the candidate's picture as it is, float32 [H, W, 3].

    Raises:
        CannotExecute: it cannot be run, or takes other steps than the reference did.
    """
    reference = trace.picture
    pipeline = candidate.pipeline(trace.settings)
    found = replay(pipeline, trace, name=name, say=say)
    if found.timesteps != reference.timesteps:
        raise CannotExecute(
            f"{trace.settings.case} takes the timesteps {list(found.timesteps)}, the reference "
            f"{list(reference.timesteps)}",
            hint="The scheduler's config in the manifest is not the checkpoint's.",
        )
    steps = []
    calls = trace.calls["unet"]
    for index, (timestep, call) in enumerate(zip(reference.timesteps, calls, strict=True)):
        say(f"{name} {trace.settings.case}, teacher-forced step {index + 1}")
        noise_pred = candidate.networks["unet"](call.inputs)["noise_pred"]
        steps.append(
            StepErrors(
                timestep,
                compare(reference.latents[index], found.latents[index]),
                compare(call.outputs["noise_pred"], noise_pred),
            )
        )
    made = Generation(
        settings=trace.settings,
        resolution=str(trace.resolution),
        reference=to_uint8(reference.image),
        candidate=to_uint8(found.image),
        start=trace.start,
        trajectory=tuple(steps),
        latents=compare(reference.latents[-1], found.latents[-1]),
        image=compare(reference.image, found.image),
        similarity=compare_images(reference.image, found.image),
    )
    return made, found.image


def check_generation(made: Generation, rules: Rules) -> list[Check]:
    """Judge the final latents and the picture; SNR of every step is recorded in the report."""
    checks = []
    for output, metrics, similarity in (
        ("latents", made.latents, None),
        ("image", made.image, made.similarity),
    ):
        values = metrics.to_json() | {"problem": metrics.problem}
        values |= similarity.to_json() if similarity else {}
        judged = rules.judge("generation", PIPELINE, values, output=output)
        checks.append(
            Check(
                level="generation",
                component=PIPELINE,
                case=made.settings.case,
                output=output,
                metrics=metrics,
                similarity=similarity,
                gate=judged.gate,
                verdict=judged.verdict,
                message=judged.message,
            )
        )
    return checks


def check_sanity(trace: Trace, image: np.ndarray) -> Check:
    """Judge whether the artifact's picture is one; where the reference's is none, nobody can."""
    check = Check("sanity", PIPELINE, trace.settings.case, SANE, "pass", output="image")
    flaw, excuse = find_flaw(image), find_flaw(trace.picture.image)
    if flaw and (excuse is None or flaw.kind != excuse.kind or flaw.kind == "not finite"):
        return replace(check, verdict="fail", message=f"the picture: {flaw}")
    if excuse:
        text = f"the reference's own picture tells nothing: {excuse}"
        return replace(check, verdict="indeterminate", message=text)
    return check


def check_pictures(
    candidate: Candidate,
    traces: Sequence[Trace],
    rules: Rules,
    levels: Collection[str],
    *,
    name: str = "",
    say: Say = silent,
) -> tuple[list[Check], tuple[Generation, ...]]:
    """Levels `generation` and `sanity`, as far as they are among `levels`."""
    checks, generations = [], []
    for trace in traces:
        made, image = generate(candidate, trace, name=name, say=say)
        generations.append(made)
        if "generation" in levels:
            checks += check_generation(made, rules)
        if "sanity" in levels:
            checks.append(check_sanity(trace, image))
    return checks, tuple(generations)
