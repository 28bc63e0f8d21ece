"""Bisecting the packages of an artifact, and telling what was found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedEmbedding
from convert.errors import InputError
from convert.process.progress import Say, silent
from verify.artifact.artifact import open_artifact
from verify.artifact.interface import infer_resolution
from verify.artifact.probe import probe_programs
from verify.bisect.bisect import Bisection, bisect
from verify.bisect.minimal import write_minimal
from verify.judge.metrics import SNR
from verify.mil import Program, load_program, require_weights
from verify.reference.recording import EMBEDDED_CASE, SMALLEST, case_names, record

Found = list[tuple[Program, Bisection]]
CAUSES = {
    "graph": "the graph: with the checkpoint's own weights, in float32, it is still wrong",
    "weights": "a weight: with the checkpoint's own weights it is right",
    "palette": "a palette: its entries are not those of the weights they stand for",
    "precision": "precision: in float32 it is right",
}


def bisect_artifact(
    path: Path,
    checkpoint: Checkpoint,
    *,
    components: Collection[str] | None = None,
    case: str | None = None,
    probe: Path | None = None,
    device: str = "cpu",
    say: Say = silent,
) -> Found:
    """Bisect the packages of an artifact folder, or one package, each on one recorded run.

    All outputs of torch's modules are held in memory, in float32: at full size, use a probe.

    Args:
        components: those to look at; all that are there if None.
        case: name of the run, the first that a component has if None.
        probe: a folder for packages with the same weights at `verify.artifact.probe.PROBE`, which
            are looked at instead, and which what is found refers to.

    Raises:
        InputError: nothing there, or no such component or case.
        CannotExecute: a package that cannot be read or run.
    """
    artifact = open_artifact(path, checkpoint, components)
    for component in artifact.packages:
        require_case(case, (component,), checkpoint.embeddings)
    found: Found = []
    for component, file in artifact.packages.items():
        program = load_program(file)
        require_weights(program)
        if probe is not None:
            program = probe_programs({component: program}, checkpoint, probe)[component]
        resolution = infer_resolution(program, component, checkpoint)
        recording = record(
            checkpoint,
            [component],
            resolution=resolution or SMALLEST,
            device=device,
            say=say,
        )
        chosen = next(c for c in recording.cases[component] if case in (None, c.name))
        say(f"{component}, {chosen.name}")
        bisection = bisect(
            program, checkpoint, component, chosen, resolution=resolution, device=device
        )
        found.append((program, bisection))
    if not found:
        raise InputError("there is no package to look at", where=path)
    return found


def require_case(
    case: str | None,
    components: Collection[str],
    embeddings: Sequence[AppliedEmbedding] | None = None,
) -> None:
    """Raise InputError if none of the components has a recorded run of that name.

    Args:
        embeddings: of the checkpoint; each has a run of its own. None: it is not opened yet.
    """
    own = [case_names(component, embeddings=embeddings or ()) for component in components]
    names = list(dict.fromkeys(name for of_component in own for name in of_component))
    may_be = embeddings is None and str(case).startswith(EMBEDDED_CASE)
    if case not in (None, *names) and not may_be:
        raise InputError(
            f"no recorded run `{case}` of {' or '.join(components)}; there are {', '.join(names)}",
            near=(str(case), names),
            hint="Give --component with --case.",
        )


def lines(bisection: Bisection) -> Iterator[str]:
    """What was found, for people."""
    where = f"{bisection.component}, {bisection.case}"
    d, overflow = bisection.divergence, bisection.overflow
    if bisection:
        yield f"✓ {where}: nothing diverges at the outputs of {bisection.modules} torch modules"
    if d is not None:
        yield f"✗ {where}: the first op to diverge is {d.type} {d.op}"
        yield f"  torch module {d.module or 'unknown'}"
        yield f"  cause        {CAUSES[d.cause]}"
        yield f"  finding      {d.message}"
        for label, snr in (
            ("local error: graph alone", d.graph_snr_db),
            ("local error: and weights", d.local_snr_db),
            ("local error: and rounding", d.typed_snr_db),
            ("propagated error", d.propagated_snr_db),
        ):
            yield f"  {label:<26} {'not finite' if snr is None else f'{snr:.1f} dB'}"
        yield f"  {SNR}, at {d.segment.value}"
    if overflow is not None:
        yield f"✗ {where}: {overflow}"
        yield f"  torch module {overflow.module or 'unknown'}"


def findings_folders(out: Path, component: str) -> tuple[Path, Path]:
    """Where the packages of a component go: of what diverges, and of what overflows."""
    return out / component / "divergence", out / component / "overflow"


def write_findings(found: Found, out: Path) -> list[Path]:
    """A minimal package for everything found, in a folder each.

    Raises:
        InputError: a folder that is there already.
    """
    written = []
    for program, bisection in found:
        why = "\n".join(lines(bisection))
        if bisection.divergence is not None:
            folder = findings_folders(out, bisection.component)[0]
            written.append(write_minimal(program, bisection.divergence.segment, folder, why))
        if bisection.overflow is not None:
            folder = findings_folders(out, bisection.component)[1]
            written.append(write_minimal(program, bisection.overflow.segment, folder, why))
    return written
