"""Verify an artifact: structure, then conversion, component by component."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError, nearest
from convert.values import Resolution
from verify.artifact import Artifact, open_artifact
from verify.checks import LEVELS, Check, Level, Results, failed, versions
from verify.compression import check_compression, compressed_weights, decoded_cases
from verify.conversion import check_conversion
from verify.interface import infer_resolution, precision
from verify.mil import Program, load_program
from verify.policy import Policy, load_policy
from verify.recording import Progress, Recording, record
from verify.runtimes import Runtime, choose
from verify.structure import check_artifact, check_package

SMALLEST = Resolution(64, 64)  # for recordings of text encoders, which have no resolution


def verify(
    path: Path,
    source: Checkpoint,
    *,
    runtime: str | Runtime = "auto",
    device: str = "cpu",
    levels: Collection[str] = LEVELS,
    policy: Policy | None = None,
    components: Collection[str] | None = None,
    recording: Recording | None = None,
    minimum: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Results:
    """Check an artifact folder, or one package or compiled model, against its checkpoint.

    Args:
        runtime: auto, coreml or torch, or one that is already there.
        device: where PyTorch computes: cpu, cuda or mps.
        levels: of `LEVELS`; each needs the checkpoint, only `conversion` needs its weights.
        policy: the built-in one if None.
        components: those that must be there and are checked; all that the checkpoint has if None.
        recording: of the checkpoint at the artifact's resolution, made before; artifacts that
            differ in attention or bits can share one. Made here if None.
        minimum: SNR in dB, by component, that compression must leave in the outputs.
        progress: is told in a few words what is being done.

    Raises:
        InputError: nothing to verify at `path`, or an argument that is not known.
        CannotExecute: a package that cannot be read or run.
    """
    wanted = tuple(_level(level) for level in levels)
    policy = policy or load_policy()
    runner = choose(runtime, device=device) if isinstance(runtime, str) else runtime
    artifact = open_artifact(Path(path), source, components)
    programs = {name: load_program(file) for name, file in artifact.packages.items()}
    resolution = _resolution(artifact, programs, source)
    checks: list[Check] = []
    if "structure" in wanted:
        checks += check_artifact(artifact, source)
        for component, program in programs.items():
            if progress:
                progress(f"structure of {component}")
            checks += check_package(
                program, component, source, resolution=resolution, claims=artifact.claims
            )
    if {"conversion", "compression"} & set(wanted) and programs:
        size = resolution or SMALLEST
        if recording is None:
            half = [name for name, program in programs.items() if precision(program) == "fp16"]
            recording = record(
                source, programs, resolution=size, fp16=half, device=device, progress=progress
            )
        _require(recording, programs, resolution)
        checks += _compare(
            programs,
            source,
            recording,
            runner,
            policy,
            wanted,
            minimum or {},
            checks,
            device,
            progress,
        )
    if "structure" not in wanted:
        for component in artifact.missing:
            checks.append(failed("conversion", component, "file", "is there", "it is missing"))
    return Results(
        artifact=artifact.name,
        source=source.name,
        runtime=runner.name,
        scope=runner.scope,
        resolution=resolution,
        policy=policy.version,
        checks=tuple(checks),
        versions=versions(),
    )


def _compare(
    programs: dict[str, Program],
    source: Checkpoint,
    recording: Recording,
    runner: Runtime,
    policy: Policy,
    levels: Collection[Level],
    minimum: Mapping[str, float],
    structure: list[Check],
    device: str,
    progress: Progress | None,
) -> list[Check]:
    """Levels `conversion` and `compression`, component by component."""
    broken = {check.component for check in structure if check.verdict == "fail"}
    checks: list[Check] = []
    for component, program in programs.items():
        cases = recording.cases[component]
        try:
            weights = compressed_weights(program, source, component)
            if weights:
                original, cases = (
                    cases,
                    decoded_cases(
                        source, component, cases, weights, device=device, progress=progress
                    ),
                )
                if "compression" in levels:
                    checks += check_compression(
                        source, component, weights, original, cases, minimum.get(component)
                    )
            if "conversion" in levels:
                checks += check_conversion(
                    program, component, cases, runner, policy, progress=progress
                )
        except (CannotExecute, InputError) as error:
            if component not in broken:
                raise
            # Its structure already says what is wrong; the other components are still checked.
            checks.append(failed("conversion", component, "run", "runs", error.problem))
        finally:
            runner.close()
    return checks


def _require(
    recording: Recording, programs: dict[str, Program], resolution: Resolution | None
) -> None:
    """Raise InputError unless a recording fits what is verified."""
    if resolution not in (None, recording.resolution):
        raise InputError(f"the recording is for {recording.resolution}, the artifact {resolution}")
    for name, program in programs.items():
        cases = recording.cases.get(name)
        if not cases:
            raise InputError(f"the recording has no {name}")
        if precision(program) == "fp16" and not all(case.fp16 for case in cases):
            raise InputError(f"the recording lacks PyTorch float16's outputs of {name}")


def _level(name: str) -> Level:
    for level in LEVELS:
        if level == name:
            return level
    near = nearest(name, LEVELS)
    raise InputError(
        f"unknown level `{name}`; there are {', '.join(LEVELS)}",
        hint=f"Did you mean `{near}`?" if near else None,
    )


def _resolution(
    artifact: Artifact, programs: dict[str, Program], source: Checkpoint
) -> Resolution | None:
    """The manifest's resolution, or that of the first package that has one."""
    if "resolution" in artifact.claims:
        return Resolution.parse(artifact.claims["resolution"])
    found = (infer_resolution(program, name, source) for name, program in programs.items())
    return next((resolution for resolution in found if resolution is not None), None)
