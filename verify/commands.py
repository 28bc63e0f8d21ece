"""The commands that check things: verify, inspect, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convert.commands import Json, Quiet, fetch, open_snapshot
from convert.errors import InputError
from convert.interrupts import deferred_interrupt
from convert.terminal import Terminal

Strict = Annotated[bool, typer.Option("--strict", help="Indeterminate counts as failed.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (verify, inspect, doctor):
        app.command()(command)


def verify(
    path: Annotated[
        Path, typer.Argument(help="An artifact folder, or one .mlpackage or .mlmodelc.")
    ],
    source: Annotated[str, typer.Option("--source", help="The checkpoint it was made from.")],
    runtime: Annotated[
        str, typer.Option(help="coreml (on a Mac), torch, or auto for what works here.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")] = "cpu",
    level: Annotated[
        list[str] | None, typer.Option(help="structure, conversion or compression; all.")
    ] = None,
    component: Annotated[list[str] | None, typer.Option(help="Only this component.")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results here; - is stdout."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds; the built-in ones by default.")
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> int:
    """Check an artifact, or one package, against the checkpoint in PyTorch.

    Example: sdxl-coreml verify out/toy_original_16-bit_128x128 --source toy
    """
    from convert.download import parse_source

    with deferred_interrupt():
        from verify import report
        from verify.checks import LEVELS
        from verify.policy import load_policy
        from verify.run import verify as check

    to_stdout = json_file == Path("-")
    terminal = Terminal(quiet=quiet, as_json=to_stdout)
    if not path.exists():
        raise InputError("no such file or folder", where=path)
    checkpoint = open_snapshot(fetch(parse_source(source), terminal))
    with terminal.working("Verifying") as say:
        results = check(
            path,
            checkpoint,
            runtime=runtime,
            device=device,
            levels=level or LEVELS,
            policy=load_policy(policy) if policy else None,
            components=component,
            progress=say,
        )
    for file, text in (
        (None if to_stdout else json_file, report.json_text),
        (junit, report.junit),
        (markdown, report.markdown),
    ):
        if file is not None:
            write_report(file, text(results))
    terminal.result(report.to_json(results), report.table(results))
    return results.exit_code(strict=strict)


def write_report(file: Path, text: str) -> None:
    """Write a report where the user wants it; raises InputError if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=file) from None


def inspect(
    path: Annotated[
        Path, typer.Argument(help="An artifact folder, or one .mlpackage or .mlmodelc.")
    ],
    as_json: Json = False,
) -> None:
    """Show interface, ops, attention implementation, bits per weight, sizes and digests.

    Example: sdxl-coreml inspect out/toy_original_16-bit_128x128/Unet.mlpackage
    """
    from verify.inspect import inspect as look

    found = look(path)
    Terminal(as_json=as_json).result(found.to_json(), "\n".join(found.lines()))


def doctor(as_json: Json = False) -> None:
    """Show what works here and what does not: versions, disk, memory, Core ML, Xcode, Hub login.

    Example: sdxl-coreml doctor
    """
    from dataclasses import asdict

    from verify.doctor import diagnose

    findings = diagnose()
    marks = {"ok": "✓", "missing": "✗", "note": "·"}
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{marks[f.status]} {f.name:<{width}}  {f.value}")
        if f.remedy:
            lines.append(f"{'':<{width + 4}}{f.remedy}")
    document: dict[str, Any] = {"schema": 1, "findings": [asdict(f) for f in findings]}
    Terminal(as_json=as_json).result(document, "\n".join(lines))
