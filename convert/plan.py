"""What a recipe asks for, as jobs: each package once, however many artifacts hold it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from convert.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.compress import METHODS, Compression
from convert.errors import InputError, nearest
from convert.models.configs import UNetConfig, VAEConfig
from convert.recipe import Artifact, Recipe
from convert.values import Bits, DeploymentTarget, Resolution

Engine = Literal["native", "apple"]
ENGINES: tuple[Engine, ...] = ("native", "apple")


@dataclass(frozen=True)
class Job:
    """One package to make. What a component does not depend on is None, so equal jobs are one."""

    component: str
    resolution: Resolution | None
    attention: str | None
    bits: str
    precision: Literal["float16", "float32"]
    deployment: DeploymentTarget
    engine: Engine

    def __str__(self) -> str:
        """For people: `unet split_einsum 1024x1024`."""
        return " ".join(str(p) for p in (self.component, self.attention, self.resolution) if p)


@dataclass(frozen=True)
class PlannedArtifact:
    """An artifact and the job behind each of its components."""

    artifact: Artifact
    jobs: dict[str, Job]


@dataclass(frozen=True)
class Plan:
    """Everything to be made."""

    recipe: Recipe
    checkpoint: Checkpoint
    artifacts: tuple[PlannedArtifact, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Each job once, in the order of the artifacts."""
        return tuple(dict.fromkeys(job for a in self.artifacts for job in a.jobs.values()))

    def weight_bytes(self, job: Job) -> int:
        """Size of the job's weight file, within a few KiB; from headers alone."""
        width = 4 if job.precision == "float32" else 2
        compression = Compression(Bits(job.bits))
        tensors = self.checkpoint.component_tensors(job.component).values()
        return sum(compression.stored_bytes(t, width) for t in tensors)

    def weight_files(self) -> dict[tuple[str, str, str], int]:
        """Bytes by weight file; packages that differ in graph alone share one."""
        return {self.weight_key(job): self.weight_bytes(job) for job in self.jobs}

    @staticmethod
    def weight_key(job: Job) -> tuple[str, str, str]:
        """What tells weight files apart: component, bits, precision."""
        return (job.component, job.bits, job.precision)


def make_plan(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    only: str | None = None,
    components: Iterable[str] = (),
    engine: Engine = "native",
) -> Plan:
    """The jobs and artifacts of a recipe.

    Args:
        only: glob of artifact names; all if None.
        components: of the artifacts; all that the checkpoint has if empty.

    Raises:
        InputError: nothing matches `only`, an unknown or missing component, a resolution or bit
            width that cannot be made, a config that is not SDXL's.
    """
    artifacts = [a for a in recipe.artifacts() if only is None or fnmatch.fnmatchcase(a.name, only)]
    if not artifacts:
        names = ", ".join(a.name for a in recipe.artifacts())
        raise InputError(f"--only {only} matches none of the artifacts", hint=f"They are: {names}.")
    chosen = _components(checkpoint, components)
    _check(checkpoint, artifacts)
    return Plan(
        recipe,
        checkpoint,
        tuple(
            PlannedArtifact(a, {c: _job(c, a, recipe, engine) for c in chosen}) for a in artifacts
        ),
    )


def _job(component: str, artifact: Artifact, recipe: Recipe, engine: Engine) -> Job:
    is_text = component.startswith("text_encoder")
    is_vae = component.startswith("vae")
    return Job(
        component=component,
        resolution=None if is_text else artifact.resolution,
        attention=artifact.attention if component == "unet" else None,
        bits="16" if is_vae else artifact.bits,
        precision=recipe.target.vae_precision if is_vae else "float16",
        deployment=recipe.target.deployment,
        engine=engine,
    )


def _components(checkpoint: Checkpoint, wanted: Iterable[str]) -> list[str]:
    wanted = list(wanted)
    for name in wanted:
        if name not in COMPONENTS:
            near = nearest(name, list(COMPONENTS))
            raise InputError(
                f"unknown component `{name}`" + (f"; did you mean `{near}`?" if near else ""),
                hint=f"Components: {', '.join(COMPONENTS)}.",
            )
        checkpoint.part(name)
    return [c for c in checkpoint.components if not wanted or c in wanted]


def _check(checkpoint: Checkpoint, artifacts: list[Artifact]) -> None:
    """Refuse now what would fail after minutes."""
    unet, vae = checkpoint.part("unet"), checkpoint.part("vae_decoder")
    UNetConfig.parse(unet.config, unet.path / "config.json", checkpoint.text_embed_dim)
    config = VAEConfig.parse(vae.config, vae.path / "config.json")
    for artifact in artifacts:
        config.latent_size((artifact.resolution.height, artifact.resolution.width))
        if artifact.bits not in ("16", *METHODS):
            raise InputError(
                f"bits {artifact.bits} cannot be made by this version",
                where=artifact.name,
                hint=f"It makes {', '.join(['16', *METHODS])}.",
            )
