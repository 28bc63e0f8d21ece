"""The commands that check things: verify, inspect, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from convert.errors import InputError
from convert.interrupts import deferred_interrupt
from sdxl_coreml.making import Json, Quiet, fetch, open_snapshot, read_recipe
from sdxl_coreml.terminal import Terminal

Strict = Annotated[bool, typer.Option("--strict", help="Indeterminate counts as failed.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (verify, inspect, doctor):
        app.command()(command)


def verify(
    path: Annotated[
        Path, typer.Argument(help="An artifact folder, or one .mlpackage or .mlmodelc.")
    ],
    source: Annotated[
        str | None, typer.Option("--source", help="The checkpoint it was made from.")
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `record` wrote: replayed instead of the reference."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="coreml (on a Mac), torch, or auto for what works here.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")] = "cpu",
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="structure, conversion and compression by default; generation and sanity make "
            "whole pictures with the reference and the artifact, which takes long at full size."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Levels, prompts, scheduler and steps from this recipe's [verify]."),
    ] = None,
    component: Annotated[list[str] | None, typer.Option(help="Only this component.")] = None,
    timesteps: Annotated[
        list[int] | None,
        typer.Option(
            "--timestep",
            min=0,
            max=999,
            help="Compare the UNet at this one; may repeat. Six by default: 999 alone is a short "
            "check of a full-size model.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Compare at 256x256, with the packages' own weights in graphs made for that size: "
            "minutes for a full-size model.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results here; - is stdout."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that anyone can read.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds; the built-in ones by default.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also compare with these results.")
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> int:
    """Check an artifact, or one package, against the checkpoint in PyTorch.

    With --golden the recorded reference is replayed, pictures included, and --source may be left
    out.

    Example: sdxl-coreml verify out/toy_original_16-bit_128x128 --source toy
    """
    from convert.components import COMPONENTS
    from convert.plan.gates import require_gates, require_gates_for
    from convert.recipe.sections import Verify
    from convert.run.manifest import read as read_manifest
    from convert.source.download import parse_source
    from convert.values import LEVELS

    with deferred_interrupt():
        from rich.console import Group

        from verify import golden as bundles
        from verify.artifact.artifact import artifact_name
        from verify.artifact.probe import PROBE
        from verify.judge.policy import load_policy
        from verify.page import page as html_report
        from verify.reports import diff_text as diff_report
        from verify.reports import report
        from verify.reports.baseline import read_baseline
        from verify.reports.diff import diff as compare
        from verify.run import require_possible
        from verify.run import verify as check
        from verify.runtime.runtimes import choose
        from verify.sampling.pipeline import SUFFIXES

    to_stdout = json_file == Path("-")
    terminal = Terminal(quiet=quiet, as_json=to_stdout)
    if not path.exists():
        raise InputError("no such file or folder", where=path)
    parsed = read_recipe(recipe) if recipe else None
    asked = parsed.verify if parsed else Verify()
    if source is None and golden is None:
        raise InputError(
            "nothing to compare with",
            hint="Give the checkpoint it was made from with --source, or a recording of it with "
            "--golden.",
        )
    levels = level or asked.levels
    require_possible(
        path,
        levels,
        components=component,
        golden=golden is not None,
        probe=probe,
        timesteps=bool(timesteps),
    )
    require_writable(json_file, junit, markdown, html)
    runner, rules = choose(runtime, device=device), load_policy(policy)
    before = None if baseline is None else read_baseline(baseline, artifact_name(path))
    recorded = bundles.read_golden(golden) if golden else None
    if recorded and recorded.traces and not (level or recipe) and path.suffix not in SUFFIXES:
        levels = LEVELS
    checkpoint = None
    if source is not None:
        checkpoint = open_snapshot(fetch(parse_source(source), terminal))
    if parsed is not None:
        known = checkpoint or (recorded and recorded.checkpoint)
        require_gates(parsed, known.components if known else COMPONENTS)
        made = read_manifest(path)
        if made is not None:
            require_gates_for(parsed, made["bits"], str(path))
    with terminal.working("Verifying") as say:
        results = check(
            path,
            checkpoint,
            runtime=runner,
            device=device,
            golden=recorded,
            levels=levels,
            policy=rules,
            components=component,
            asked=asked,
            timesteps=sorted(set(timesteps), reverse=True) if timesteps else None,
            probe=PROBE if probe else None,
            progress=say,
        )
    document, summary = report.to_json(results), report.markdown(results)
    shown = report.table(results)
    code = results.exit_code(strict=strict)
    if before is not None:
        found = compare(before, [document], rules)
        document["diff"] = found.to_json()
        summary += "\n" + diff_report.markdown(found)
        shown = Group(shown, diff_report.table(found))
        code = code if found else 1
    images = report.pictures(results)
    if json_file and not to_stdout:
        write_report(json_file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        for name, image in images.items():
            write_report(json_file.parent / name, image)
    if junit:
        write_report(junit, report.junit(results))
    if markdown:
        write_report(markdown, summary)
    if html:
        write_report(html, html_report.html(document, images, command=_command_line()))
    terminal.result(document, shown)
    return code


def _command_line() -> str:
    """This command as it was typed."""
    import shlex
    import sys

    return shlex.join(["sdxl-coreml", *sys.argv[1:]])


def require_writable(*files: Path | None) -> None:
    """Raise InputError, before any work is done, for a file that could not be written after it."""
    import os

    for file in files:
        if file is None or file == Path("-"):
            continue
        if file.is_dir():
            raise InputError("is a folder; a file is expected", where=file)
        place = next(folder for folder in file.absolute().parents if folder.exists())
        if not place.is_dir():
            raise InputError("is a file; a folder is expected", where=place)
        if not os.access(file if file.exists() else place, os.W_OK):
            raise InputError("cannot be written: Permission denied", where=file)


def require_new_folder(folder: Path) -> None:
    """Raise InputError, before any work is done, for a folder that holds something already."""
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError("exists and is not empty", where=folder, hint="Name a new folder.")
    require_writable(folder / "of it")


def write_report(file: Path, text: str | bytes) -> None:
    """Write a report where the user wants it; raises InputError if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=file) from None


def inspect(
    path: Annotated[
        Path, typer.Argument(help="An artifact folder, or one .mlpackage or .mlmodelc.")
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Every weight: how it is stored, in how many bits.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show interface, ops, attention implementation, bits per weight, sizes and digests.

    Example: sdxl-coreml inspect out/toy_original_16-bit_128x128/Unet.mlpackage
    """
    from verify.artifact.inspect import inspect as look

    found = look(path, by_layer=layers)
    Terminal(as_json=as_json).result(found.to_json(), "\n".join(found.lines()))


def doctor(as_json: Json = False) -> None:
    """Show what works here and what does not: versions, disk, memory, Core ML, Xcode, Hub login.

    Example: sdxl-coreml doctor
    """
    from dataclasses import asdict

    from sdxl_coreml.doctor import diagnose

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
