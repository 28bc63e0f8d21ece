"""The commands for when numbers change: recheck, bless, diff, and bisect, which finds where."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from convert.errors import InputError
from sdxl_coreml.making import Json, Quiet, out_option
from sdxl_coreml.terminal import Terminal
from sdxl_coreml.verifying import Strict, require_new_folder, write_report

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results here; - is stdout."),
]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (recheck, bless, diff, bisect):
        app.command()(command)


def recheck(
    results: Annotated[Path, typer.Argument(help="A report, a `reports` folder or its summary.")],
    policy: Annotated[Path, typer.Option(metavar="FILE", help="The thresholds to judge by.")],
    json_file: JsonFile = None,
    markdown: Markdown = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> int:
    """Judge saved results again by another policy; nothing is run.

    A measure that a gate asks for and that was not taken makes the verdict indeterminate.

    Example: sdxl-coreml recheck out/demo/reports --policy strict.toml
    """
    import json

    from verify.judge.checks import exit_code, worst
    from verify.judge.policy import load_policy
    from verify.reports.recheck import recheck as judge
    from verify.reports.saved import as_document, read_reports
    from verify.reports.summary import summary_markdown, summary_table

    to_stdout = json_file == Path("-")
    rules = load_policy(policy)
    reports = tuple(judge(report, rules) for report in read_reports(results))
    verdict = worst(report["verdict"] for report in reports)
    document = as_document(reports, verdict)
    if json_file is not None and not to_stdout:
        write_report(json_file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    if markdown is not None:
        write_report(markdown, summary_markdown(reports))
    Terminal(quiet=quiet, as_json=to_stdout).result(document, summary_table(reports))
    return exit_code(verdict, strict=strict)


def bless(
    results: Annotated[Path, typer.Argument(help="A report, a `reports` folder or its summary.")],
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="The baseline to write.")],
    reason: Annotated[str, typer.Option(help="Why these results are right.")],
    quiet: Quiet = False,
) -> None:
    """Accept results as the baseline that later ones are compared with.

    Results that did not pass, or in which nothing was compared, are refused.

    Example: sdxl-coreml bless out/demo/reports --baseline baseline.json --reason "release 1.0"
    """
    from verify.reports.baseline import bless as accept
    from verify.reports.baseline import write_baseline
    from verify.reports.figures import count, figures_line
    from verify.reports.saved import read_reports

    accepted = accept(read_reports(results), reason)
    write_baseline(baseline, accepted)
    terminal = Terminal(quiet=quiet)
    for report in accepted["reports"]:
        counts, figures = count(report["checks"]), figures_line(report)
        terminal.say(f"{baseline}: {report['artifact']}, {counts}. {figures}".rstrip())


def diff(
    old: Annotated[Path, typer.Argument(help="A baseline, report or `reports` folder.")],
    new: Annotated[Path, typer.Argument(help="The same, to be compared with it.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose tolerances hold; built-in ones.")
    ] = None,
    markdown: Markdown = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compare two results; what is worse, loosened or no longer checked fails.

    Example: sdxl-coreml diff baseline.json out/demo/reports
    """
    from verify.judge.policy import load_policy
    from verify.reports.baseline import read_baseline
    from verify.reports.diff import diff as compare
    from verify.reports.diff_text import markdown as as_markdown
    from verify.reports.diff_text import table

    found = compare(read_baseline(old), read_baseline(new), load_policy(policy))
    if markdown is not None:
        write_report(markdown, as_markdown(found))
    Terminal(quiet=quiet, as_json=as_json).result(found.to_json(), table(found))
    return 0 if found else 1


def bisect(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or one .mlpackage.")],
    source: Annotated[str, typer.Option("--source", help="The checkpoint it was made from.")],
    component: Annotated[list[str] | None, typer.Option(help="Only this component.")] = None,
    case: Annotated[
        str | None, typer.Option(help="Which recorded run, such as t=500; the first by default.")
    ] = None,
    out: Annotated[
        Path | None, out_option("Write the ops to blame as a package, with inputs.", "DIR")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Look at 256x256, with the packages' own weights in graphs made for that size: "
            "a full-size model does not fit into memory at its own.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")] = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Find the first op that diverges from the checkpoint's modules in PyTorch, and why.

    Graph, weights, palettes and precision are told apart; an op that overflows is named.

    Example: sdxl-coreml bisect out/toy_original_16-bit_128x128 --source toy --component unet
    """
    from convert.components import COMPONENTS
    from convert.interrupts import deferred_interrupt
    from convert.source.download import parse_source
    from sdxl_coreml.making import fetch, open_snapshot

    with deferred_interrupt():
        from verify.artifact.probe import probe_folder
        from verify.bisect.report import (
            bisect_artifact,
            findings_folders,
            lines,
            require_case,
            write_findings,
        )
        from verify.run import require_possible
        from verify.runtime.runtimes import require_device

    if not path.exists():
        raise InputError("no such file or folder", where=path)
    require_possible(path, ("conversion",), components=component, probe=probe)
    require_case(case, component or tuple(COMPONENTS))
    require_device(device)
    if out is not None:
        for name in component or COMPONENTS:
            for place in findings_folders(out, name):
                require_new_folder(place)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    checkpoint = open_snapshot(fetch(parse_source(source), terminal))
    with ExitStack() as stack:
        folder = stack.enter_context(probe_folder(path)) if probe else None
        with terminal.working("Bisecting") as say:
            found = bisect_artifact(
                path,
                checkpoint,
                components=component,
                case=case,
                probe=folder,
                device=device,
                progress=say,
            )
        if out is not None:
            for package in write_findings(found, out):
                terminal.say(f"written: {package}")
    document = {"schema": 1, "bisections": [b.to_json() for _, b in found]}
    terminal.result(document, "\n".join(line for _, b in found for line in lines(b)))
    return 0 if all(b for _, b in found) else 1
