"""What the HTML report shows, taken from the report's JSON: plain values for the templates."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convert.components import COMPONENTS
from verify import html_words as words
from verify.checks import worst

Json = Mapping[str, Any]
SHOWN_FAILURES = 5  # of one component at one level; the others are folded


def number(value: Any) -> float | None:
    """A number of the JSON: "inf" and "-inf" are infinite, null is None."""
    return None if value is None else float(value)


def show(value: Any, digits: int = 1, unit: str = "") -> str:
    """A number for people; without a number, a dash."""
    found = number(value)
    if found is None:
        return "–"
    if math.isinf(found):
        text = "∞" if found > 0 else "−∞"
    else:
        text = f"{found:.{digits}f}".replace("-", "−")
    return f"{text} {unit}" if unit else text


def decibels(value: Any) -> str:
    """A level for people, `54.0 dB`."""
    return show(value, 1, "dB")


def cosine(value: Any) -> str:
    """A cosine with the digits that say something: 0.99999815, but never rounded up to 1."""
    found = number(value)
    if found is None:
        return "–"
    for digits in (4, 6, 8, 10):
        text = f"{found:.{digits}f}"
        if found >= 1 or float(text) < 1:
            break
    return text if found >= 1 or float(text) < 1 else "> 0.9999999999"


def tiles(document: Json) -> list[tuple[str, str, str]]:
    """(name, value, where) of the few numbers that say most."""
    checks = document["checks"]
    passed = sum(c["verdict"] == "pass" for c in checks)
    found = [
        ("Checks passed", f"{passed} of {len(checks)}", f"limits: policy {document['policy']}")
    ]
    lowest = _lowest([c for c in checks if c["level"] == "conversion"])
    if lowest:
        found.append(("Lowest SNR of a model", _snr_text(lowest), place(lowest)))
    pictures = document.get("generations", [])
    for name, key, text in (
        ("Lowest PSNR of a picture", "psnr_db", decibels),
        ("Lowest cosine of final latents", "latents_cosine", cosine),
    ):
        known = [g for g in pictures if number(g.get(key)) is not None]
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
    verdict = worst(c["verdict"] for c in checks)
    lowest = _lowest(checks)
    passed = sum(c["verdict"] == "pass" for c in checks)
    return {
        "verdict": verdict,
        "count": f"{passed} of {len(checks)}",
        "snr": _snr_text(lowest) if lowest else None,
    }


def index_cells(document: Json) -> list[tuple[bool, str]]:
    """For each component whether all its checks passed, and its lowest SNR in dB (conversion)."""
    cells = []
    for component in COMPONENTS:
        of = [c for c in document["checks"] if c["component"] == component]
        lowest = _lowest([c for c in of if c["level"] == "conversion"])
        text = _snr_text(lowest).removesuffix(" dB") if lowest else "–"
        cells.append((all(c["verdict"] == "pass" for c in of), text))
    return cells


def components(checks: Sequence[Json]) -> list[str]:
    """The components that were checked, in the order of the pipeline; unknown ones last."""
    known = ["artifact", *COMPONENTS, "pipeline"]
    seen = {c["component"] for c in checks}
    return [c for c in known if c in seen] + sorted(seen - set(known))


def measurements(checks: Sequence[Json]) -> list[dict[str, Any]]:
    """For each output that was compared, its worst case beside PyTorch fp16's, and the limits."""
    groups: dict[tuple[str, str, str], list[Json]] = {}
    for check in checks:
        if check["metrics"]:
            key = (check["level"], check["component"], check["output"] or check["case"])
            groups.setdefault(key, []).append(check)
    rows = []
    for (level, component, output), of in groups.items():
        lowest = _lowest(of)
        assert lowest is not None
        metrics = lowest["metrics"]
        rows.append(
            {
                "verdict": _cell(of)["verdict"],
                "level": level,
                "component": words.component_name(component),
                "output": output,
                "snr": _snr_text(lowest),
                "case": lowest["case"],
                "fp16": decibels(metrics.get("fp16_snr_db")),
                "ratio": show(_greatest(of, "fp16_error_ratio"), 2),
                "limits": [words.gate_words(g) for g in dict.fromkeys(c["gate"] for c in of)],
                "cases": len(of),
            }
        )
    return rows


def place(check: Json) -> str:
    """Where a check is, in one line."""
    parts = (words.component_name(check["component"]), check["case"], check["output"])
    return ", ".join(p for p in parts if p)


def command(document: Json) -> str:
    """The command line that repeats the verification."""
    parts = ["sdxl-coreml", "verify", document["artifact"], "--source", document["source"]]
    parts += ["--runtime", document["runtime"]]
    return shlex.join([*parts, "--html", "report.html"])


def _lowest(checks: Iterable[Json]) -> Json | None:
    """The check with the lowest SNR; what is not finite is lower than any number."""
    compared = [c for c in checks if c["metrics"]]
    return min(compared, key=_snr, default=None)


def _snr(check: Json) -> float:
    value = number(check["metrics"]["snr_db"])
    return -math.inf if value is None or not check["metrics"]["finite"] else value


def _snr_text(check: Json) -> str:
    return decibels(check["metrics"]["snr_db"]) if check["metrics"]["finite"] else "not finite"


def _greatest(checks: Iterable[Json], key: str) -> float | None:
    found = [number(c["metrics"].get(key)) for c in checks]
    return max((v for v in found if v is not None), default=None)
