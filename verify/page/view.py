"""What the HTML report shows, taken from the report's JSON: plain values for the templates."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from convert.components import COMPONENTS
from verify.judge.checks import PIPELINE, worst
from verify.page import words
from verify.reports import figures
from verify.reports.figures import FIGURES, Json, decibels, kind, lowest, show, snr_text

SHOWN_FAILURES = 5  # of one component at one level; the others are folded


def cosine(value: Any) -> str:
    """A cosine with the digits that say something: 0.99999815, but never rounded up to 1."""
    if value is None:
        return "–"
    found = float(value)
    for digits in (4, 6, 8, 10):
        text = f"{found:.{digits}f}"
        if found >= 1 or float(text) < 1:
            break
    return text if found >= 1 or float(text) < 1 else "> 0.9999999999"


def tiles(document: Json) -> list[tuple[str, str, str]]:
    """(name, value, of what and where) of the few numbers that say most."""
    counts = figures.count(document["checks"])
    checked = f"{counts.passed} of {counts.total}"
    found = [("Checks passed", checked, f"limits: policy {document['policy']}")]
    if figures.compared(document):
        names = FIGURES[:1] if figures.is_one(document) else FIGURES
        for figure in names:
            check = figures.figure(figure, document)
            where = place(check) if check else "level compression was not asked for"
            if check and check["verdict"] != "pass":
                where += f"; asked: {words.gate_words(check['gate'])}"
            found.append((words.LOWEST[figure], snr_text(check), where))
    pictures = document.get("generations", [])
    for name, key, text in (
        ("Lowest PSNR of a picture", "psnr_db", decibels),
        ("Lowest cosine of final latents", "latents_cosine", cosine),
    ):
        known = [g for g in pictures if g.get(key) is not None]
        if known:
            least = min(known, key=lambda g: float(g[key]))
            found.append((name, text(least[key]), least["case"]))
    return found


def failures(checks: Sequence[Json], artifact: str, source: str) -> list[dict[str, Any]]:
    """A group for each component and level where a check failed or could not be made."""
    groups: dict[tuple[str, str, str], list[Json]] = {}
    for check in checks:
        if check["verdict"] != "pass":
            key = (check["verdict"], check["level"], check["component"])
            groups.setdefault(key, []).append(check)
    found = []
    for (verdict, level, component), bad in sorted(groups.items(), key=lambda g: g[0][0] != "fail"):
        total = sum((c["level"], c["component"]) == (level, component) for c in checks)
        why = [words.LEVELS[level][2] if verdict == "fail" else words.INDETERMINATE]
        if any(c["metrics"] and not c["metrics"]["finite"] for c in bad):
            why.append(words.NOT_FINITE)
        outcome = "failed" if verdict == "fail" else "without a verdict"
        bisect = None
        if verdict == "fail" and level == "conversion" and component in COMPONENTS:
            package = f"{artifact}/{COMPONENTS[component].file}.mlpackage"
            bisect = shlex.join(["sdxl-coreml", "bisect", package, "--source", source])
        found.append(
            {
                "verdict": verdict,
                "level": level,
                "component": words.component_name(component),
                "count": f"{len(bad)} of {total} checks {outcome}",
                "why": why,
                "gate": bad[0]["gate"] if len({c["gate"] for c in bad}) == 1 else None,
                "shown": bad[:SHOWN_FAILURES],
                "folded": bad[SHOWN_FAILURES:],
                "bisect": bisect,
            }
        )
    return found


def failed_first(document: Json) -> list[Json]:
    """The generations, those of which a check did not pass first."""
    bad = {c["case"] for c in document["checks"] if c["verdict"] != "pass"}
    return sorted(document.get("generations", []), key=lambda g: g["case"] not in bad)


def matrix(checks: Sequence[Json]) -> tuple[list[str], list[dict[str, Any]]]:
    """The levels that were checked, and for each component a cell at each of them."""
    levels = [level for level in words.LEVELS if any(c["level"] == level for c in checks)]
    rows = []
    for component in components(checks):
        cells = []
        for level in levels:
            of = [c for c in checks if (c["component"], c["level"]) == (component, level)]
            cells.append({"level": level, **_cell(of)} if of else None)
        rows.append({"component": words.component_name(component), "cells": cells})
    return levels, rows


def _cell(checks: Sequence[Json]) -> dict[str, Any]:
    counts = figures.count(checks)
    return {
        "verdict": worst(c["verdict"] for c in checks),
        "count": f"{counts.passed} of {counts.total}",
        "lowest": [(k, snr_text(lowest(of))) for k, of in figures.by_kind(checks).items()],
        "failed": next(filter(None, map(_other_number, checks)), None),
    }


def _other_number(check: Json) -> str | None:
    """What a check found, where the number that failed is no SNR."""
    metrics = {gate.metric for gate, _ in figures.shortfalls(check)}
    return figures.found(check) if metrics - {"snr_db"} else None


def index_cells(document: Json) -> list[list[tuple[str, bool, str]]]:
    """For each component (figure, whether its checks passed, the figure in dB or what failed): the
    checkpoint's, and below it the program's where weights are compressed."""
    names = FIGURES[:1] if figures.is_one(document) else FIGURES
    cells = []
    for component in COMPONENTS:
        found = [(str(name), *figures.cell(document, component, name)) for name in names]
        cells.append([(name, ok, text or ("–" if ok else "")) for name, ok, text in found])
    return cells


def components(checks: Sequence[Json]) -> list[str]:
    """The components that were checked, in the order of the pipeline; unknown ones last."""
    known = ["artifact", *COMPONENTS, PIPELINE]
    seen = {c["component"] for c in checks}
    return [c for c in known if c in seen] + sorted(seen - set(known))


def measurements(checks: Sequence[Json]) -> list[dict[str, Any]]:
    """For each output that was compared, at each size its worst case beside PyTorch fp16's, and the
    limits."""
    groups: dict[tuple[str, str, str, str], list[Json]] = {}
    for check in checks:
        if check["metrics"]:
            output, size = check["output"] or check["case"], check.get("size") or ""
            key = (check["level"], check["component"], output, size)
            groups.setdefault(key, []).append(check)
    rows = []
    for (level, component, output, _), of in groups.items():
        least = lowest(of)
        assert least is not None
        metrics = least["metrics"]
        rows.append(
            {
                "verdict": worst(c["verdict"] for c in of),
                "level": level,
                "kind": kind(least),
                "component": words.component_name(component),
                "output": output,
                "snr": snr_text(least),
                "case": words.case(least),
                "fp16": decibels(metrics.get("fp16_snr_db")),
                "ratio": show(_greatest(of, "fp16_error_ratio"), 2),
                "limits": [words.gate_words(g) for g in dict.fromkeys(c["gate"] for c in of)],
                "cases": len(of),
            }
        )
    return rows


def place(check: Json) -> str:
    """Where a check is, in one line."""
    parts = (words.component_name(check["component"]), words.case(check), check["output"])
    return ", ".join(p for p in parts if p)


def command(document: Json) -> str:
    """The command line that repeats the verification."""
    parts = ["sdxl-coreml", "verify", document["artifact"], "--source", document["source"]]
    parts += ["--runtime", document["runtime"]]
    parts += ["--effort", document["effort"]] if document.get("effort") else []
    return shlex.join([*parts, "--html", "report.html"])


def _greatest(checks: Iterable[Json], key: str) -> float | None:
    found = (c["metrics"].get(key) for c in checks)
    return max((float(v) for v in found if v is not None), default=None)
