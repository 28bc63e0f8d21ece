"""The commands about saved results: recheck, bless, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_coreml.options import JsonFile, JsonOption, Markdown, Quiet, Strict
from sdxl_coreml.steps import write_report
from sdxl_coreml.terminal import Terminal


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
    as_json: JsonOption = False,
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
