"""The curves of the HTML report: which numbers of the report's JSON go into which chart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verify.html_chart import Series, error_chart
from verify.html_view import decibels, number

Json = Mapping[str, Any]
_SNR_GATE = re.compile(r"snr_db >= (-?[\d.]+)")
_TIMESTEP = re.compile(r"t=([\d.]+) (cond|uncond)")


def step_chart(checks: Sequence[Json]) -> dict[str, Any] | None:
    """The UNet's error at each recorded timestep, beside PyTorch fp16's; None without any."""
    of = [c for c in checks if c["level"] == "conversion" and c["component"] == "unet"]
    points: dict[str, list[tuple[float, float | None]]] = {"cond": [], "uncond": []}
    floor: dict[float, float] = {}
    for check in of:
        match = _TIMESTEP.fullmatch(check["case"])
        if match is None or not check["metrics"]:
            continue
        timestep, metrics = float(match[1]), check["metrics"]
        points[match[2]].append((timestep, number(metrics["snr_db"])))
        fp16 = number(metrics.get("fp16_snr_db"))
        if fp16 is not None:
            floor[timestep] = min(fp16, floor.get(timestep, math.inf))
    named = (
        ("With the prompt", points["cond"]),
        ("With the negative prompt", points["uncond"]),
        ("PyTorch fp16, the worse of both", sorted(floor.items(), reverse=True)),
    )
    return _chart("The UNet’s SNR in dB at each timestep", named, snr_gate(of), "limit")


def generation_chart(generation: Json, gate: float | None) -> dict[str, Any] | None:
    """The error at each step of one run, free-running and teacher-forced; None without any."""
    steps = generation["trajectory"]
    forced = [(float(s["timestep"]), number(s["noise_pred_snr_db"])) for s in steps]
    free = [(float(s["timestep"]), number(s["latents_snr_db"])) for s in steps]
    named = (("Free-running: latents", free), ("Teacher-forced: predicted noise", forced))
    return _chart(
        f"SNR in dB after each step of {generation['case']}", named, gate, "limit of one step"
    )


def _chart(
    label: str,
    named: Iterable[tuple[str, Sequence[tuple[float, float | None]]]],
    gate: float | None,
    gate_name: str,
) -> dict[str, Any] | None:
    """The SVG, and the same numbers as a table for who cannot see it."""
    series = [Series(name, points) for name, points in named if points]
    if not series:
        return None
    rows = []
    for timestep in sorted({t for s in series for t, _ in s.points}, reverse=True):
        at = [dict(s.points).get(timestep, math.nan) for s in series]
        texts = ["not finite" if v is None else "" if math.isnan(v) else decibels(v) for v in at]
        rows.append((f"{timestep:g}", texts))
    lowest = [v for s in series for _, v in s.points if v is not None]
    spoken = f"{label}. Lowest: {decibels(min(lowest))}." if lowest else f"{label}."
    return {
        "svg": error_chart(spoken, series, gate, gate_name),
        "names": [s.name for s in series],
        "rows": rows,
    }


def snr_gate(checks: Iterable[Json]) -> float | None:
    """The lowest SNR in dB that these checks ask for; None if they ask for none."""
    found = [_SNR_GATE.search(c["gate"]) for c in checks]
    return min((float(m[1]) for m in found if m), default=None)
