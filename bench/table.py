"""The results as Markdown, between two markers, for RESULTS.md and the README.

Each program of the bench writes a part of RESULTS.md, and leaves those of the others as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from bench.measure import Measured
from bench.run import LEFT_AS_IT_IS, Measurements, Row
from convert.units import size

PART = "bench"
PARTS = re.compile(r"^<!-- (\w+) -->$.*?^<!-- /\1 -->$\n?", re.M | re.S)
NONE = "–"


def markdown(measurements: Measurements, machine: Sequence[str], *, source: str) -> str:
    """The whole of RESULTS.md.

    Args:
        machine: facts of `machine.describe`.
        source: what was converted, for people.
    """
    return "\n".join(
        [
            "# Measurements",
            "",
            "Written by `python -m bench`; what each figure means is said below the table.",
            "",
            start(PART),
            *_table(measurements.rows),
            "",
            *_matrix_facts(measurements.rows),
            *_palette_facts(measurements.rows),
            f"Measured with {source}, on:",
            "",
            *(f"- {fact}" for fact in machine),
            end(PART),
            "",
            *_predictions(measurements),
            *_explanations(measurements),
            "",
        ]
    )


def _table(rows: Sequence[Row]) -> list[str]:
    with_peer = any(row.task.is_peer for row in rows)
    columns = ["", "until exit", "until synced", "× `cp`"]
    columns += ["× Apple's"] if with_peer else []
    columns += ["CPU", "peak memory: anonymous", "with mapped files", "on disk"]
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    limit = next((row for row in rows if row.task.name == "cp"), None)
    peer = next((row for row in rows if row.task.is_peer), None)
    for row in rows:
        if row.problem is not None or not row.runs:
            cells = [row.task.title, row.problem or "not run"]
            lines.append(_line(cells + [NONE] * (len(columns) - 2)))
            continue
        cells = [
            row.task.title,
            spread(row, lambda m: m.wall, seconds),
            spread(row, lambda m: m.synced, seconds),
            _ratio(row, limit),
        ]
        # Against one UNet, another amount of work would be a number without a meaning.
        alike = row.task.is_peer or row.task.name.startswith("unet-original")
        cells += [_ratio(row, peer) if alike else NONE] if with_peer else []
        cells += [
            spread(row, lambda m: m.cpu, seconds),
            spread(row, lambda m: m.peak_memory.anonymous + m.peak_memory.shared, size),
            spread(row, lambda m: m.peak, size),
            size(row.disk.allocated) if row.disk else NONE,
        ]
        lines.append(_line(cells))
    return lines


def _matrix_facts(rows: Sequence[Row]) -> list[str]:
    row = next((r for r in rows if r.task.name == "matrix" and r.problem is None), None)
    if row is None or row.disk is None or not row.disk.artifact_weights:
        return []
    disk = row.disk
    return [
        f"The {disk.artifacts} artifacts take {size(disk.allocated)} on disk, "
        f"{disk.allocated / disk.artifact_weights:.2f} × the weights of one "
        f"({size(disk.artifact_weights)}); without hard links they would take "
        f"{size(disk.linked)}.",
        "",
    ]


def _palette_facts(rows: Sequence[Row]) -> list[str]:
    """Our compressed matrix, and our palettes beside coremltools'."""
    lines = []
    row = next((r for r in rows if r.task.name == "compressed-matrix" and r.problem is None), None)
    if row is not None and row.disk is not None and row.disk.weights:
        disk = row.disk
        lines += [
            f"The {disk.artifacts} UNets of several bit widths take {size(disk.allocated)} on "
            f"disk, {disk.allocated / disk.weights:.2f} × their weight files "
            f"({size(disk.weights)}).",
            "",
        ]
    row = next((r for r in rows if r.task.name == "palettes" and r.problem is None), None)
    if row is not None and row.runs:
        found = json.loads(row.runs[-1].stdout)
        lines += [
            f"Squared error of our palettes ÷ that of coremltools': {found['ratio_of_all']:.4f} of "
            f"all {found['tensors']} tensors, median {found['median_ratio']:.4f}, largest "
            f"{found['largest_ratio']:.4f}; weight files {size(found['ours_bytes'])} and "
            f"{size(found['theirs_bytes'])}.",
            "",
        ]
    return lines


def _predictions(measurements: Measurements) -> list[str]:
    row = next((r for r in measurements.rows if r.task.name == "matrix"), None)
    if measurements.plan is None or row is None or row.problem or row.disk is None:
        return []
    anonymous = median(m.peak_memory.anonymous + m.peak_memory.shared for m in row.runs)
    known: list[tuple[str, str, float, Callable[[float], str]]] = [
        ("weight_bytes", "weights on disk", row.disk.weights, size),
        ("bytes", "on disk", row.disk.allocated, size),
        ("seconds", "until exit", median(m.wall for m in row.runs), seconds),
        ("peak_memory_bytes", "peak of anonymous memory", anonymous, size),
    ]
    lines = []
    for key, title, measured, show in known:
        predicted = measurements.plan.get(key)
        if isinstance(predicted, int | float) and measured:
            ratio = f"{predicted / measured:.2f}"
            lines.append(_line([f"{title} (`{key}`)", show(predicted), show(measured), ratio]))
    head = [_line(["", "predicted", "measured", "ratio"]), _line(["---", *["---:"] * 3])]
    title = "What `plan` says of the matrix beforehand, and what came of it:"
    return [title, "", *head, *lines, ""] if lines else []


def _explanations(measurements: Measurements) -> list[str]:
    runs = max((len(row.runs) for row in measurements.rows), default=0)
    interval = round(1000 * measurements.interval)
    cache = measurements.page_cache
    alike = f"{cache} before each run" if cache == LEFT_AS_IT_IS else f"before each run {cache}"
    limited = [m for row in measurements.rows for m in row.runs if m.limited]
    lines = [
        f"- Page cache: {alike}. Output folders are removed before each run.",
        "- Until exit: from the start of the command until it has exited. Until synced: until "
        "`sync`, of the whole machine, has written everything out. Ratios are of the latter.",
        "- CPU: user and system time of the command and of the children it waited for.",
        f"- Memory: sampled every {interval} ms, summed over the command and its descendants; "
        "anonymous includes shared memory. The kernel can drop pages of mapped files when memory "
        "is short.",
        "- On disk: as `du` counts, the tool's cache included; hard links once.",
        f"- One run each; figures in decimal units ({size(3 << 30)} is 3 GiB)."
        if runs == 1
        else f"- Median of {runs} runs, and the smallest and largest; in decimal units.",
    ]
    if limited:
        peak = max(m.group_peak or 0 for m in limited)
        lines.append(
            f"- Within a limit: {limited[0].limited} without swap"
            + (f"; it was charged {size(peak)} at its peak, page cache included." if peak else ".")
        )
    return lines


def spread(row: Row, get: Callable[[Measured], float], show: Callable[[float], str]) -> str:
    """Median, and smallest to largest where there are several runs that differ."""
    values = [get(measured) for measured in row.runs]
    middle, low, high = (show(v) for v in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def _ratio(row: Row, to: Row | None) -> str:
    if to is None or to.problem is not None or not to.runs:
        return NONE
    ratio = median(m.synced for m in row.runs) / median(m.synced for m in to.runs)
    return f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.2f}"


def seconds(value: float) -> str:
    """`0.42 s`, `48.2 s`, `16.7 min`."""
    if value >= 300:
        return f"{value / 60:.1f} min"
    return f"{value:.1f} s" if value >= 9.95 else f"{value:.2f} s"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def start(part: str) -> str:
    """What stands before a part."""
    return f"<!-- {part} -->"


def end(part: str) -> str:
    """What stands behind it."""
    return f"<!-- /{part} -->"


def put(part: str, text: str, results: Path) -> None:
    """Replace a part in the file, or add it at its end; `text` has its markers."""
    old = results.read_text("utf-8") if results.exists() else ""
    rest = PARTS.sub(lambda found: "" if found[1] == part else found[0], old).rstrip("\n")
    results.write_text(f"{rest}\n\n{text}" if rest else text, "utf-8")


def kept(results: Path) -> str:
    """The parts of other programs that the file has, for what replaces the rest."""
    found = PARTS.finditer(results.read_text("utf-8")) if results.exists() else ()
    return "\n".join(part[0] for part in found if part[1] != PART)
