"""The curves of the HTML report: which numbers of the report's JSON go into which chart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from verify.page import words
from verify.page.chart import Series, error_chart
from verify.reports import figures
from verify.reports.figures import Json, decibels

_SNR_GATE = re.compile(r"snr_db >= (-?[\d.]+)")
_TIMESTEP = re.compile(r"t=([\d.]+)(?: (cond|uncond))?")
Points = list[tuple[float, float | None]]


def step_chart(document: Json) -> dict[str, Any] | None:
    """The UNet's error at each recorded timestep, beside PyTorch fp16's; None without any.

    Where its weights are compressed, the error against the checkpoint comes first. Of several sizes
    it is the one with most timesteps, and says which that is.
    """
    of = [c for c in document["checks"] if c["component"] == "unet" and c["metrics"]]
    size = _best_known_size(of)
    of = [c for c in of if c.get("size") == size]
    program = [c for c in of if figures.kind(c) == "program"]
    cond, uncond = (_points(program, half) for half in ("cond", "uncond"))
    fp16 = ("PyTorch fp16, the worse of both", _points(program, key="fp16_snr_db"))
    label = "The UNet’s SNR in dB at each timestep"
    at = f", at {words.size(size)}" if size else ""
    caption, label = f"UNet, one step at a time from PyTorch’s latents{at}", label + at
    if not figures.compressed(document, "unet"):
        named = (("With the prompt", cond), ("With the negative prompt", uncond), fp16)
        return _captioned(caption, _chart(label, named, snr_gate(program), "limit"))
    checkpoint = [c for c in of if figures.kind(c) == "checkpoint"]
    pairs = (
        ("Against the checkpoint", _points(checkpoint)),
        ("Program, the worse of both prompts", _points(program)),
        fp16,
    )
    gate = snr_gate(checkpoint)
    if gate is None:
        return _captioned(caption, _chart(label, pairs, snr_gate(program), "program’s limit"))
    return _captioned(caption, _chart(label, pairs, gate, "checkpoint’s limit"))


def _captioned(caption: str, chart: dict[str, Any] | None) -> dict[str, Any] | None:
    return chart and {**chart, "caption": caption}


def _best_known_size(checks: Sequence[Json]) -> str | None:
    """The size with the most timesteps; None is the artifact's own, which comes first."""
    steps: dict[str | None, set[str]] = {None: set()}
    for check in checks:
        if match := _TIMESTEP.fullmatch(check["case"]):
            steps.setdefault(check.get("size"), set()).add(match[1])
    return max(steps, key=lambda size: len(steps[size]))


def _points(checks: Sequence[Json], half: str | None = None, *, key: str = "snr_db") -> Points:
    """(timestep, dB), from noise to picture: of one half of the guidance, or the worse of both."""
    found: dict[float, list[float | None]] = {}
    for check in checks:
        match = _TIMESTEP.fullmatch(check["case"])
        if match is None or half not in (None, match[2]):
            continue
        value = number(check["metrics"].get(key))
        if value is not None or key == "snr_db":
            found.setdefault(float(match[1]), []).append(value)
    return [
        (t, None if None in values else min(v for v in values if v is not None))
        for t, values in sorted(found.items(), reverse=True)
    ]


def generation_chart(generation: Json, document: Json) -> dict[str, Any] | None:
    """The error at each step of one run, free-running and teacher-forced; None without any.

    Both are against the checkpoint, so the limit is that of the UNet's figure against it.
    """
    steps = generation["trajectory"]
    forced = [(float(s["timestep"]), number(s["noise_pred_snr_db"])) for s in steps]
    free = [(float(s["timestep"]), number(s["latents_snr_db"])) for s in steps]
    named = (("Free-running: latents", free), ("Teacher-forced: predicted noise", forced))
    wanted = "checkpoint" if figures.compressed(document, "unet") else "program"
    unet = [c for c in document["checks"] if c["component"] == "unet" and figures.kind(c) == wanted]
    label = f"SNR in dB after each step of {generation['case']}"
    return _chart(label, named, snr_gate(unet), "limit of one step")


def number(value: Any) -> float | None:
    """A number of the JSON: "inf" and "-inf" are infinite, null is None."""
    return None if value is None else float(value)


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
