"""What a recipe asks for, as jobs: each package once, however many artifacts hold it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import pipeline_config
from convert.components import COMPONENTS
from convert.errors import InputError, nearest
from convert.plan.engines import Engine, require_engine
from convert.plan.gates import require_gates
from convert.plan.notices import Notice, notices
from convert.plan.precision import FLOAT32, ChosenPrecision, chosen_precision
from convert.recipe.recipe import ArtifactSpec, Recipe
from convert.values import Bits, DeploymentTarget, Resolution, VaePrecision, is_mixed
from convert.weights.allocation import Allocation, BitsByComponent, fitting_allocations
from convert.weights.compress import (
    NONE,
    UNCOMPRESSED,
    ComponentWeights,
    Compression,
    budget,
    choose_methods,
    options,
    require_average,
)
from convert.weights.methods import component_bits, component_weights
from convert.weights.mixed_bits import provisional


class WeightIdentity(NamedTuple):
    """What tells the weight files of one checkpoint apart: not resolution, nor attention."""

    component: str
    compression: Compression
    precision: str
    deployment: DeploymentTarget | None  # compressed ones are as the target's decoders want them


@dataclass(frozen=True)
class Job:
    """One package to make. What a component does not depend on is None, so equal jobs are one."""

    component: str
    resolution: Resolution | None
    attention: str | None
    bits: Bits  # as recipes spell them
    compression: Compression  # what they mean for each tensor
    precision: Literal["float16", "float32"]
    deployment: DeploymentTarget
    engine: Engine

    @property
    def weights(self) -> WeightIdentity:
        """Its weight file; packages that differ in graph alone share one."""
        target = self.deployment if self.compression.methods else None
        return WeightIdentity(self.component, self.compression, self.precision, target)

    def __str__(self) -> str:
        """For people: `unet split_einsum 1024x1024`."""
        return " ".join(str(p) for p in (self.component, self.attention, self.resolution) if p)


@dataclass(frozen=True)
class PlannedArtifact:
    """An artifact and the job behind each of its components."""

    artifact: ArtifactSpec
    jobs: dict[str, Job]


@dataclass(frozen=True)
class Plan:
    """Everything to be made."""

    recipe: Recipe
    checkpoint: Checkpoint
    artifacts: tuple[PlannedArtifact, ...]
    weights: Mapping[str, ComponentWeights]  # by component
    pipeline: Mapping[str, Any]  # of `convert.checkpoint.pipeline`
    allocations: Mapping[Bits, Allocation] = field(default_factory=dict)  # of mixed bits
    precision: ChosenPrecision = FLOAT32  # of the VAE

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What apps cannot express of the checkpoint."""
        return notices(self.checkpoint, {c: None for a in self.artifacts for c in a.jobs})

    @property
    def unmeasured(self) -> tuple[Bits, ...]:
        """Mixed bits without an allocation; their widths are provisional."""
        wanted = dict.fromkeys(a.artifact.bits for a in self.artifacts)
        return tuple(b for b in wanted if is_mixed(b) and b not in self.allocations)

    def with_precision(self, precision: ChosenPrecision) -> Plan:
        """The plan with the VAE's precision as it was measured."""
        assert precision.value is not None
        artifacts = tuple(
            replace(
                a,
                jobs={
                    c: job if COMPONENTS[c].is_half else replace(job, precision=precision.value)
                    for c, job in a.jobs.items()
                },
            )
            for a in self.artifacts
        )
        return replace(self, artifacts=artifacts, precision=precision)

    def with_allocations(self, allocations: Mapping[Bits, Allocation]) -> Plan:
        """The plan with the widths of mixed bits as they were measured."""
        bits = {
            component: {a.artifact.bits: a.jobs[component].bits for a in self.artifacts}
            for component in self.artifacts[0].jobs
        }
        target, file = self.recipe.target.deployment, self.recipe.compress.allocation
        compressions = _compressions(self.weights, bits, target, allocations, file)
        artifacts = tuple(
            replace(
                a,
                jobs={
                    c: replace(job, compression=compressions[c, a.artifact.bits])
                    for c, job in a.jobs.items()
                },
            )
            for a in self.artifacts
        )
        return replace(self, artifacts=artifacts, allocations=allocations)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Each job once, in the order of the artifacts."""
        return tuple(dict.fromkeys(job for a in self.artifacts for job in a.jobs.values()))

    @cached_property
    def weight_bytes(self) -> dict[Job, int]:
        """Size of each job's weight file, within a few KiB; from headers alone."""
        return {
            job: job.compression.stored_bytes(
                self.weights[job.component].tensors, width=4 if job.precision == "float32" else 2
            )
            for job in self.jobs
        }

    @cached_property
    def weight_files(self) -> dict[Job, int]:
        """Bytes of each weight file, by the first job that has it."""
        first = {job.weights: job for job in reversed(self.jobs)}
        return {job: n for job, n in self.weight_bytes.items() if first[job.weights] is job}


def make_plan(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    only: str | None = None,
    components: Iterable[str] = (),
    engine: Engine = "native",
    digests: Mapping[Path, str] = MappingProxyType({}),
) -> Plan:
    """The jobs and artifacts of a recipe.

    Args:
        only: glob of artifact names; all if None.
        components: of the artifacts; all that the checkpoint has if empty.
        digests: SHA-256 (hex) of the checkpoint's files, where they are known already.

    Raises:
        InputError: nothing matches `only`, an unknown or missing component, a resolution or bit
            width that cannot be made, a config that is not SDXL's, a gate that judges nothing.
    """
    artifacts = wanted_artifacts(recipe, only)
    wanted = list(components)
    require_components(wanted)
    chosen = [c for c in COMPONENTS if c in (wanted or checkpoint.components)]
    pipeline = _check(checkpoint, artifacts, chosen, engine)
    require_engine(engine, chosen, [a.bits for a in artifacts])
    compress, target = recipe.compress, recipe.target.deployment
    bits = {c: {a.bits: component_bits(c, a.bits, compress) for a in artifacts} for c in chosen}
    weights = {
        component: component_weights(component, checkpoint.component_tensors(component), compress)
        for component in dict.fromkeys([*chosen, *compress.named])
    }
    allocations = fitting_allocations(compress.allocation, weights, bits, target)
    compressions = _compressions(weights, bits, target, allocations, compress.allocation)
    require_gates(recipe, checkpoint.components, compressions)
    precision = chosen_precision(recipe, checkpoint, chosen, digests)
    vae = precision.value or "float32"  # until it is measured
    return Plan(
        recipe,
        checkpoint,
        tuple(
            PlannedArtifact(
                a, {c: _job(c, a, recipe, engine, bits, compressions, vae) for c in chosen}
            )
            for a in artifacts
        ),
        weights,
        pipeline,
        allocations,
        precision,
    )


def wanted_artifacts(recipe: Recipe, only: str | None = None) -> list[ArtifactSpec]:
    """The recipe's artifacts whose names match a glob; all if None. Raises InputError for none."""
    artifacts = [a for a in recipe.artifacts() if only is None or fnmatch.fnmatchcase(a.name, only)]
    if not artifacts:
        names = ", ".join(a.name for a in recipe.artifacts())
        raise InputError(f"--only {only} matches none of the artifacts", hint=f"They are: {names}.")
    return artifacts


def require_components(names: Iterable[str]) -> None:
    """Raise InputError for a name that is no component's."""
    for name in names:
        if name not in COMPONENTS:
            near = nearest(name, list(COMPONENTS))
            raise InputError(
                f"unknown component `{name}`" + (f"; did you mean `{near}`?" if near else ""),
                hint=f"Components: {', '.join(COMPONENTS)}.",
            )


def _compressions(
    weights: Mapping[str, ComponentWeights],
    bits: BitsByComponent,
    target: DeploymentTarget,
    allocations: Mapping[Bits, Allocation],
    file: str | None,
) -> dict[tuple[str, Bits], Compression]:
    """By component and artifact's bits; each is worked out once, for all that have them.

    Args:
        file: that the allocations were read from, if the recipe names one.
    """
    found: dict[tuple[str, Bits], Compression] = {}
    for component, of in weights.items():
        for asked, width in bits.get(component, {}).items():
            if asked == UNCOMPRESSED:
                found[component, asked] = NONE
            elif is_mixed(width):
                if width in allocations:
                    widths = allocations[width].widths(component)
                else:
                    widths = provisional(options(of, target), budget(of, width), component, width)
                found[component, asked] = choose_methods(of, width, widths)
                require_average(of, found[component, asked], width, where=file)
            else:
                found[component, asked] = choose_methods(of, width)
    return found


def _job(
    component: str,
    artifact: ArtifactSpec,
    recipe: Recipe,
    engine: Engine,
    bits: BitsByComponent,
    compressions: Mapping[tuple[str, Bits], Compression],
    vae_precision: VaePrecision,
) -> Job:
    spec = COMPONENTS[component]
    return Job(
        component=component,
        resolution=artifact.resolution if spec.has_resolution else None,
        attention=artifact.attention if spec.has_attention else None,
        bits=bits[component][artifact.bits],
        compression=compressions[component, artifact.bits],
        precision="float16" if spec.is_half else vae_precision,
        deployment=recipe.target.deployment,
        engine=engine,
    )


def _check(
    checkpoint: Checkpoint, artifacts: list[ArtifactSpec], components: list[str], engine: Engine
) -> dict[str, Any]:
    """Refuse now what would fail after minutes; returns the pipeline's config."""
    unet, vae, where = checkpoint.unet, checkpoint.vae, checkpoint.parts["vae"].config_file
    if unet.out_channels != vae.latent_channels:
        raise InputError(
            f"`latent_channels` is {vae.latent_channels}; the UNet gives latents of "
            f"{unet.out_channels} channels",
            where=where,
            hint="UNet and VAE belong to different models.",
        )
    if (
        engine == "apple"
        and not vae.scaling.is_standard
        and any(COMPONENTS[name].part == "vae" for name in components)
    ):
        raise InputError(
            f"scales latents by {vae.scaling}, which Apple's engine cannot fold into the VAE",
            where=where,
            hint="Use `--engine native`.",
        )
    pipeline = pipeline_config(checkpoint)
    _ = checkpoint.text_encoders
    for artifact in artifacts:
        vae.latent_size(artifact.resolution)
    return pipeline
