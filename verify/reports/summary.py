"""Several artifacts' reports in one table: rows for their figures, a column for each component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convert.components import COMPONENTS
from convert.values import Verdict
from verify.judge.checks import PIPELINE, worst
from verify.judge.image_metrics import PSNR
from verify.judge.metrics import SNR
from verify.reports import figures
from verify.reports.evidence import how_verified, meanings
from verify.reports.figures import FIGURES, MEANINGS
from verify.reports.phrases import joined
from verify.reports.report import MARKS, STYLES, failures
from verify.reports.saved import Report

# Column heads that leave the artifact's name its place on a terminal of 80 columns.
SHORT = {name: spec.short for name, spec in COMPONENTS.items()} | {PIPELINE: "pictures"}

SIZES = (
    "Numbers are of {} where nothing was executed at an artifact's own size; of both, the lowest."
)


def summary_json(report: Report) -> dict[str, Any]:
    """What reports/summary.json says of an artifact, from its verdict to its failures."""
    counts = figures.count(report["checks"])
    return {
        "artifact": report["artifact"],
        "verdict": report["verdict"],
        **{key: report[key] for key in ("effort", "evidence") if report.get(key)},
        **figures.figures_json(report),
        "checks": {"total": counts.total, "passed": counts.passed},
        "failures": [c for c in report["checks"] if c["verdict"] != "pass"],
    }


def summary_table(reports: Sequence[Report]) -> Any:
    """The table as a rich renderable, failures below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    components = _components(reports)
    view = Table(box=None, pad_edge=False)
    view.add_column("")
    view.add_column("artifact", overflow="fold")
    view.add_column("against", no_wrap=True)
    for name in (*(SHORT[c] for c in components), "checks"):
        view.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        verdict: Verdict = report["verdict"]
        columns = zip(*_rows(report, components), strict=True)
        mark, name, *cells = ("\n".join(column).rstrip("\n") for column in columns)
        artifact = Text(name)
        if report.get("evidence"):
            artifact.append(f"\n{how_verified(report).short}", "dim")
        view.add_row(Text(mark, STYLES[verdict]), artifact, *cells)
    parts: list[Any] = [view]
    for report in reports:
        parts += failures(report, report["artifact"])
    verdict = worst(r["verdict"] for r in reports)
    passed = sum(r["verdict"] == "pass" for r in reports)
    parts.append(Text(f"{verdict}: {passed} of {len(reports)} artifacts passed", STYLES[verdict]))
    parts += [Text(line, "dim") for line in _footnotes(reports)]
    return Group(*parts)


def summary_markdown(reports: Sequence[Report]) -> str:
    """The table for a CI job's page, failures below it."""
    components = _components(reports)
    heads = ["artifact", "against", *components, "checks"]
    is_told = any(r.get("evidence") for r in reports)
    heads += ["evidence"] if is_told else []
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for report in reports:
        rows = _rows(report, components)
        if is_told:
            short = how_verified(report).short
            rows = [[*row, "" if n else short] for n, row in enumerate(rows)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    bad = [
        f"- {MARKS[c['verdict']]} {figures.place(c, r['artifact'])}: {figures.problem(c)}"
        for r in reports
        for c in r["checks"]
        if c["verdict"] != "pass"
    ]
    lines += ["", *bad, ""] if bad else [""]
    return "\n".join([*lines, *(f"{line}  " for line in _footnotes(reports))]).rstrip() + "\n"


def _sized(check: Report) -> bool:
    """Whether a check measured at another size than the artifact's own."""
    return bool(check.get("size") and check["metrics"])


def _components(reports: Sequence[Report]) -> list[str]:
    seen = {check["component"] for report in reports for check in report["checks"]}
    return [c for c in (*COMPONENTS, PIPELINE) if c in seen]


def _rows(report: Report, components: Sequence[str]) -> list[list[str]]:
    """Mark, artifact, figure, a cell for each component, counts: a row for each figure, or one
    where both are the same."""
    counts = figures.count(report["checks"])
    first = [MARKS[report["verdict"]], report["artifact"]]
    last = f"{counts.passed}/{counts.total}"
    if figures.is_one(report):
        return [[*first, "both", *_cells(report, components, "checkpoint"), last]]
    checkpoint, program = (_cells(report, components, name) for name in FIGURES)
    return [[*first, "checkpoint", *checkpoint, last], ["", "", "program", *program, ""]]


def _cells(report: Report, components: Sequence[str], name: str) -> list[str]:
    found = []
    for component in components:
        if name == "program" and component == PIPELINE:
            found.append("")  # pictures are compared with the checkpoint's
            continue
        passed, text = figures.cell(report, component, name)
        found.append(text if passed else f"{MARKS['fail']} {text}".rstrip())
    return found


def _footnotes(reports: Sequence[Report]) -> list[str]:
    scopes = list(dict.fromkeys(r["scope"] for r in reports))
    sizes = dict.fromkeys(c["size"] for r in reports for c in r["checks"] if _sized(c))
    pictures = f" Of pictures the lowest PSNR in dB; {PSNR}."
    how = [how_verified(r) for r in reports] if any(r.get("evidence") for r in reports) else []
    return [
        *(f"Evidence, {short}: {meaning}." for short, meaning in meanings(how).items()),
        f"Numbers: the lowest SNR in dB; {SNR}."
        + (pictures if any(r.get("generations") for r in reports) else ""),
        *([SIZES.format(joined(list(sizes)))] if sizes else []),
        *(f"{name}: {MEANINGS[name]}." for name in FIGURES),
        *(["both: no weight is compressed."] if any(map(figures.is_one, reports)) else []),
        *(f"Scope: {s}." for s in scopes),
    ]
