"""Verify an artifact: structure, then each component by itself, then whole runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import pipeline_config
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError, nearest
from convert.files.disk import digest_file
from convert.progress import Say, silent
from convert.recipe.sections import Verify
from convert.values import COMPONENT_LEVELS, LEVELS, Level, Resolution
from verify.artifact import probe as probes
from verify.artifact.artifact import LONE, Artifact, open_artifact
from verify.artifact.interface import infer_resolution, is_compressed, precision
from verify.artifact.probe import not_probeable, probe_folder, probe_programs, require_probeable
from verify.artifact.stored import compressed_names
from verify.bisect.ops import worst_ops_of
from verify.golden import Golden, require_same_checkpoint, source_files
from verify.judge.checks import PICTURE_LEVELS, PIPELINE, Check, Results, failed, versions
from verify.judge.gates import Gate, recipe_gates
from verify.judge.policy import Policy, load_policy
from verify.levels.compression import check_compression, compressed_weights, decoded_cases
from verify.levels.conversion import check_conversion
from verify.levels.generation import Asked, Candidate, Generation, check_pictures
from verify.levels.structure import check_artifact, check_package
from verify.mil import Program, load_program
from verify.reference.recording import SMALLEST, Case, Recording, record
from verify.reference.schedule import TIMESTEPS
from verify.runtime.runtimes import Runtime, choose
from verify.sampling.pipeline import open_network
from verify.sampling.sampling import Trace, kinds_of, settings_for, trace_all

COMPARED: tuple[Level, ...] = ("conversion", "compression")  # levels of recorded cases


def verify(
    path: Path,
    source: Checkpoint | None = None,
    *,
    golden: Golden | None = None,
    runtime: str | Runtime = "auto",
    device: str = "cpu",
    levels: Collection[str] = COMPONENT_LEVELS,
    policy: Policy | None = None,
    components: Collection[str] | None = None,
    recording: Recording | None = None,
    traces: Sequence[Trace] | None = None,
    asked: Verify | None = None,
    minimum: Mapping[str, float] | None = None,
    timesteps: Sequence[int] | None = None,
    probe: Resolution | None = None,
    say: Say = silent,
) -> Results:
    """Check an artifact folder, or one package or compiled model, against its checkpoint.

    Args:
        source: the checkpoint; may be None where there is a golden bundle.
        golden: what the reference did, recorded before, in place of running it. Without `source`,
            what compression did to single weights cannot be told, and is said to be indeterminate.
        runtime: auto, coreml or torch, or one that is already there.
        device: where PyTorch computes: cpu, cuda or mps.
        levels: of `LEVELS`. Those of whole runs, `generation` and `sanity`, take the reference and
            the artifact through every step of every picture, so they are not among the default.
        policy: the built-in one if None.
        components: those that must be there and are checked; all that the checkpoint has if None.
        recording: of the checkpoint at the artifact's resolution, made before; artifacts that
            differ in attention or bits can share one. Made here if None.
        traces: whole runs of the reference at that resolution; the same holds for them.
        asked: the recipe's [verify], whose gates are asked and from which traces are made; its
            defaults if None.
        minimum: SNR in dB, by component, that compression must leave in the outputs; what the
            gates of `asked` say for these bits if None.
        timesteps: at which the UNet is compared; those of `verify.reference.schedule` if None.
        probe: compare at this size instead of the packages' own, with their own weights; see
            `verify.probe`. Structure is that of the packages as they are.
        say: is told in a few words what is being done.

    Raises:
        InputError: nothing to verify at `path`, or an argument that is not known.
        CannotExecute: a package that cannot be read or run.
    """
    wanted = require_possible(
        Path(path),
        levels,
        components=components,
        golden=golden is not None,
        probe=probe is not None,
        timesteps=timesteps is not None,
    )
    policy = policy or load_policy()
    runner = choose(runtime, device=device) if isinstance(runtime, str) else runtime
    if golden is not None:
        made_from = source_files(Path(path))
        if made_from:
            require_same_checkpoint(golden, made_from, "the artifact's")
        recording, traces = golden.recording, golden.traces
    reference = source or (golden.checkpoint if golden else None)
    if reference is None:
        raise InputError("neither a checkpoint nor a golden bundle to compare with", where=path)
    artifact = open_artifact(Path(path), reference, components)
    programs = {name: load_program(file) for name, file in artifact.packages.items()}
    resolution = _resolution(artifact, programs, reference)
    if recording is not None and set(COMPARED) & set(wanted):
        _require_recording(recording, programs, probe or resolution)
    if set(PICTURE_LEVELS) & set(wanted):
        _require_whole(reference, components or reference.components)
        if traces is not None:
            _require_traces(traces, resolution)
    if probe is not None:
        require_probeable(programs)
    if golden is not None and source is not None:
        digests = {name: digest_file(file) for name, file in source.files.items()}
        require_same_checkpoint(golden, digests, source.name)
    source = reference
    bits = artifact.claims.get("bits") or _bits(programs)
    asked = asked or Verify()
    if asked.gates and bits is None:
        raise InputError(
            "the recipe's gates are for weights of certain bits, and the bits of these are not "
            "known",
            where=path,
            hint="Verify the artifact's folder, whose manifest says them.",
        )
    gates = recipe_gates(asked.gates, bits)
    if minimum is not None:
        own = [
            Gate("compression", (name,), "snr_db", True, value, "asked for")
            for name, value in minimum.items()
        ]
        gates = (*(gate for gate in gates if gate.level != "compression"), *own)
    checks: list[Check] = []
    if "structure" in wanted:
        checks += check_artifact(artifact, source)
        for component, program in programs.items():
            say(f"structure of {component}")
            checks += check_package(
                program,
                component,
                source,
                resolution=resolution,
                claims=artifact.claims,
                asked=artifact.asked.get(component),
            )
    if set(COMPARED) & set(wanted) and programs:
        with ExitStack() as stack:
            compared, size = programs, resolution
            if probe is not None:
                folder = stack.enter_context(probe_folder(Path(path)))
                compared, size = probe_programs(programs, source, folder, size=probe), probe
            if recording is None:
                recording = record(
                    source,
                    compared,
                    resolution=size or SMALLEST,
                    fp16=[n for n, program in compared.items() if precision(program) == "fp16"],
                    timesteps=timesteps or (TIMESTEPS if probe is None else probes.TIMESTEPS),
                    device=device,
                    say=say,
                )
            checks += _compare(
                compared,
                source,
                recording,
                runner,
                policy,
                wanted,
                gates,
                bits,
                checks,
                device,
                say,
            )
    generations: tuple[Generation, ...] = ()
    if set(PICTURE_LEVELS) & set(wanted):
        if traces is None:
            kinds = kinds_of(artifact.packages)
            size = resolution or SMALLEST
            traces = trace_all(
                source,
                settings_for(asked, kinds),
                size,
                device=device,
                say=say,
            )
        found, generations = _pictures(
            artifact,
            source,
            traces,
            runner,
            Asked(policy, bits, gates),
            wanted,
            checks,
            say,
        )
        checks += found
    rounding = {}
    if generations and recording is not None:
        broken = {check.component for check in checks if check.verdict == "fail"}
        sound = {name: p for name, p in programs.items() if name not in broken}
        first = {name: cases[0].inputs for name, cases in recording.cases.items()}
        say("op by op")
        rounding = worst_ops_of(sound, source, first, device=device)
    scope = runner.scope
    if probe is not None:
        scope += "; compared were " + probes.SCOPE.format(probe)
    if golden is not None:
        told = ", ".join(f"{name} {golden.versions.get(name)}" for name in ("torch", "diffusers"))
        scope += f"; the reference is a recording, made with {told}"
    if "structure" not in wanted:
        for component in artifact.missing:
            checks.append(failed("conversion", component, "file", "is there", "it is missing"))
    return Results(
        artifact=artifact.name,
        source=source.name,
        runtime=runner.name,
        scope=scope,
        resolution=resolution,
        policy=policy.version,
        checks=tuple(checks),
        versions=versions(),
        code=policy.made_by,
        bits=bits,
        compressed=tuple(n for n, p in programs.items() if _has_compressed(p, source, n)),
        generations=generations,
        worst_ops=rounding,
    )


def _compare(
    programs: dict[str, Program],
    source: Checkpoint,
    recording: Recording,
    runner: Runtime,
    policy: Policy,
    levels: Collection[Level],
    gates: Sequence[Gate],
    bits: str | None,
    structure: list[Check],
    device: str,
    say: Say,
) -> list[Check]:
    """Levels `conversion` and `compression`, component by component."""
    broken = {check.component for check in structure if check.verdict == "fail"}
    checks: list[Check] = []
    for component, program in programs.items():
        cases = recording.cases[component]
        if precision(program) != "fp16":  # a golden bundle has it for all components
            cases = tuple(replace(case, fp16={}) for case in cases)
        try:
            if is_compressed(program) and not source.part(component).tensors:
                checks += _compressed_by_recording(
                    program,
                    source,
                    component,
                    cases,
                    runner,
                    levels,
                    gates,
                    policy,
                    bits,
                )
                continue
            weights = compressed_weights(program, source, component)
            if weights:
                original, cases = (
                    cases,
                    decoded_cases(source, component, cases, weights, device=device, say=say),
                )
                if "compression" in levels:
                    checks += check_compression(
                        source,
                        component,
                        weights,
                        original,
                        cases,
                        gates,
                        policy,
                        bits,
                    )
            if "conversion" in levels:
                checks += check_conversion(program, component, cases, runner, policy, say=say)
        except (CannotExecute, InputError) as error:
            if component not in broken:
                raise
            # Its structure already says what is wrong; the other components are still checked.
            checks.append(failed("conversion", component, "run", "runs", error.problem))
    return checks


def _compressed_by_recording(
    program: Program,
    source: Checkpoint,
    component: str,
    cases: tuple[Case, ...],
    runtime: Runtime,
    levels: Collection[Level],
    gates: Sequence[Gate],
    policy: Policy,
    bits: str | None,
) -> Iterator[Check]:
    """A compressed component where the checkpoint's weights are absent: its outputs alone."""
    if "conversion" in levels:
        text = "its weights are compressed, and what they do in PyTorch needs the checkpoint"
        gate = "like its own decoded weights in PyTorch"
        yield Check("conversion", component, "run", gate, "indeterminate", message=text)
    if "compression" in levels:
        model = open_network(runtime, Path(program.path), component)
        ran = tuple(replace(case, outputs=dict(model(case.inputs))) for case in cases)
        yield from check_compression(source, component, {}, cases, ran, gates, policy, bits)


def _pictures(
    artifact: Artifact,
    source: Checkpoint,
    traces: Sequence[Trace],
    runtime: Runtime,
    asked: Asked,
    levels: Collection[Level],
    earlier: list[Check],
    say: Say,
) -> tuple[list[Check], tuple[Generation, ...]]:
    """Levels `generation` and `sanity`, with the settings that the artifact itself claims."""
    level = next(level for level in PICTURE_LEVELS if level in levels)
    missing = ", ".join(artifact.missing)
    if missing:
        return [failed(level, PIPELINE, "run", "runs", f"{missing} missing")], ()
    config = artifact.pipeline or pipeline_config(source)
    tokenizers = {name: artifact.path for name in config["pad_tokens"]}
    try:
        networks = {n: open_network(runtime, f, n) for n, f in artifact.packages.items()}
        candidate = Candidate(networks, config, tokenizers)
        return check_pictures(candidate, traces, asked, levels, name=runtime.name, say=say)
    except (CannotExecute, InputError) as error:
        if not any(check.verdict == "fail" for check in earlier):
            raise
        # What is wrong has been said already, where it can be told.
        return [failed(level, PIPELINE, "run", "runs", error.problem)], ()


def require_possible(
    path: Path,
    levels: Collection[str],
    *,
    components: Collection[str] | None = None,
    golden: bool = False,
    probe: bool = False,
    timesteps: bool = False,
) -> tuple[Level, ...]:
    """The levels, where what is asked of a verification goes together; no file is read.

    Raises:
        InputError: an unknown level or component, or what cannot be done at once.
    """
    wanted = tuple(_level(level) for level in levels)
    pictures = set(PICTURE_LEVELS) & set(wanted)
    for name in components or ():
        if name not in COMPONENTS:
            near = nearest(name, list(COMPONENTS))
            raise InputError(
                f"there is no component `{name}`; there are {', '.join(COMPONENTS)}",
                hint=f"Did you mean `{near}`?" if near else None,
            )
    if probe and (pictures or golden):
        raise InputError(
            "a probe compares components; it makes no pictures and needs no golden bundle",
            hint="Leave out --probe, or --golden and the levels generation and sanity.",
        )
    if probe and path.suffix == ".mlmodelc":
        raise not_probeable(path)
    if timesteps and (golden or not set(COMPARED) & set(wanted)):
        why = "a golden bundle has its own" if golden else "no level compares the UNet"
        raise InputError(f"timesteps are asked for; {why}", hint="Leave out --timestep.")
    if pictures and path.suffix in LONE:
        raise InputError(
            "one package makes no pictures",
            where=path,
            hint="Give the artifact's folder, or leave out --level generation and sanity.",
        )
    return wanted


def _require_whole(source: Checkpoint, components: Collection[str]) -> None:
    """Raise InputError unless pictures can be made with these components."""
    absent = [n for n in source.components if n not in components and not COMPONENTS[n].is_optional]
    if absent:
        raise InputError(
            f"pictures need {', '.join(absent)}, too",
            hint="Leave out --component, or --level generation and sanity.",
        )


def _require_traces(traces: Sequence[Trace], resolution: Resolution | None) -> None:
    """Raise InputError unless there are whole runs that fit what is verified."""
    if not traces:
        raise InputError("no pictures were recorded", hint="Leave out generation and sanity.")
    for trace in traces:
        if resolution not in (None, trace.resolution):
            raise InputError(
                f"the pictures were recorded for {trace.resolution}, the artifact {resolution}"
            )


def _require_recording(
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


def _has_compressed(program: Program, source: Checkpoint, component: str) -> bool:
    """Whether weights of the checkpoint are compressed, not only constants of the program's own."""
    if not is_compressed(program) or not source.part(component).tensors:
        return is_compressed(program)
    return bool(compressed_names(program, source, component))


def _bits(programs: Mapping[str, Program]) -> str | None:
    """The bits of packages that no manifest describes; compressed ones do not say theirs."""
    return None if any(map(is_compressed, programs.values())) else "16"
