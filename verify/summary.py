"""Several artifacts' reports in one table: a row each, a column for every component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convert.components import COMPONENTS
from verify.checks import Verdict, worst
from verify.image_metrics import PSNR
from verify.metrics import SNR
from verify.report import MARKS, STYLES

Report = dict[str, Any]
PICTURES = "pipeline"  # the component that levels generation and sanity are of
# Column heads that leave the artifact's name its place on a terminal of 80 columns.
SHORT = {
    "text_encoder": "text",
    "text_encoder_2": "text 2",
    "unet": "UNet",
    "vae_decoder": "VAE dec",
    "vae_encoder": "VAE enc",
    "pipeline": "pictures",
}


def lowest_snr(report: Report, component: str | None = None) -> float | None:
    """The lowest SNR in dB at level `conversion` (of one component); None without any.

    Infinite where all outputs equal the reference; not finite ones are failures, not numbers.
    """
    found = [
        float(check["metrics"]["snr_db"])  # "inf" is a string in JSON
        for check in report["checks"]
        if check["level"] == "conversion" and check["metrics"]
        if check["metrics"]["snr_db"] is not None
        if component in (None, check["component"])
    ]
    return min(found, default=None)


def summary_table(reports: Sequence[Report]) -> Any:
    """The table as a rich renderable, failures below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    components = _components(reports)
    view = Table(box=None, pad_edge=False)
    view.add_column("")
    view.add_column("artifact", overflow="fold")
    for name in (*(SHORT[c] for c in components), "structure"):
        view.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        verdict: Verdict = report["verdict"]
        view.add_row(Text(MARKS[verdict], STYLES[verdict]), *_cells(report, components))
    parts: list[Any] = [view]
    for report in reports:
        for check in report["checks"]:
            if check["verdict"] != "pass":
                place = " · ".join(
                    p for p in (report["artifact"], check["component"], check["case"]) if p
                )
                text = f"{place}: {check['message']} (asked: {check['gate']})"
                parts.append(Text(f"{MARKS[check['verdict']]} {text}", STYLES[check["verdict"]]))
    verdict = worst(r["verdict"] for r in reports)
    count = sum(r["verdict"] == "pass" for r in reports)
    parts.append(Text(f"{verdict}: {count} of {len(reports)} artifacts passed", STYLES[verdict]))
    parts += [Text(line, "dim") for line in _footnotes(reports)]
    return Group(*parts)


def summary_markdown(reports: Sequence[Report]) -> str:
    """The table for a CI job's page."""
    components = _components(reports)
    lines = [
        f"| | artifact | {' | '.join(components)} | structure |",
        "|---|---|" + "---|" * (len(components) + 1),
    ]
    for report in reports:
        cells = " | ".join(_cells(report, components))
        lines.append(f"| {MARKS[report['verdict']]} | {cells} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in _footnotes(reports))]).rstrip() + "\n"


def _components(reports: Sequence[Report]) -> list[str]:
    seen = {check["component"] for report in reports for check in report["checks"]}
    return [c for c in (*COMPONENTS, PICTURES) if c in seen]


def _cells(report: Report, components: Sequence[str]) -> list[str]:
    cells = [report["artifact"]]
    for component in components:
        snr = lowest_snr(report, component)
        bad = any(c["component"] == component and c["verdict"] != "pass" for c in report["checks"])
        cells.append(("✗ " if bad else "") + ("" if snr is None else f"{snr:.1f}"))
    if PICTURES in components:
        cells[-1] = _pictures(report)
    structure = [c for c in report["checks"] if c["level"] == "structure"]
    passed = sum(c["verdict"] == "pass" for c in structure)
    return [*cells, f"{passed}/{len(structure)}"]


def _pictures(report: Report) -> str:
    """The lowest PSNR of the report's pictures, marked if something about them failed."""
    psnr = [float(g["psnr_db"]) for g in report.get("generations", []) if g["psnr_db"] is not None]
    bad = any(c["component"] == PICTURES and c["verdict"] != "pass" for c in report["checks"])
    return ("✗ " if bad else "") + (f"{min(psnr):.1f}" if psnr else "")


def _footnotes(reports: Sequence[Report]) -> list[str]:
    scopes = list(dict.fromkeys(r["scope"] for r in reports))
    pictures = f" Of pictures the lowest PSNR in dB; {PSNR}."
    return [
        f"Numbers: the lowest SNR in dB against PyTorch float32; {SNR}."
        + (pictures if any(r.get("generations") for r in reports) else ""),
        *(f"Scope: {s}." for s in scopes),
    ]
