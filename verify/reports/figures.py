"""The figures of a report: which numbers are shown of it, of what they are, and how they are said.

Two say how near a model's outputs are to PyTorch's float32, and neither stands for the other:

- `program`: PyTorch has the package's own weights, decoded (level `conversion`). It is what the
  graph and its precision cost.
- `checkpoint`: PyTorch has the checkpoint's weights. It is what a user gets. Where weights are
  compressed it takes level `compression`, and is no better than the program's, whose error comes on
  top; without that level it is not measured. Where none are, both are one measurement.

Tables, pages, cards and manifests all take them from here, and from the report's JSON alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from convert.components import COMPONENTS
from convert.values import Verdict
from convert.weights.compress import UNCOMPRESSED
from verify.judge.checks import PIPELINE
from verify.judge.gates import HIGHER_IS_BETTER, Gate, number, parse_gates

Json = Mapping[str, Any]
FigureKind = Literal["checkpoint", "program", "weights", "latents", "image"]
KINDS: tuple[FigureKind, ...] = get_args(FigureKind)  # in the order in which they are shown
FIGURES: tuple[Literal["checkpoint", "program"], ...] = ("checkpoint", "program")
MEANINGS = {
    "checkpoint": "against PyTorch float32 with the checkpoint's own weights",
    "program": "against PyTorch float32 with the package's own weights, decoded",
    "weights": "of a stored weight against the checkpoint's",
}
WORST_WEIGHT = "weights, worst of"  # how the case of the worst single weight begins
NOT_MEASURED = "not measured"
NOT_FINITE = "not finite"


# ---- numbers as people read them ----


def show(value: Any, digits: int = 1, unit: str = "") -> str:
    """A number of the JSON for people, where "inf" is a string; without a number, a dash."""
    if value is None:
        return "–"
    found = float(value)
    if math.isinf(found):
        text = "∞" if found > 0 else "−∞"
    else:
        text = f"{found:.{digits}f}".replace("-", "−")
    return f"{text} {unit}" if unit else text


def decibels(value: Any) -> str:
    """A level for people, `54.0 dB`."""
    return show(value, 1, "dB")


def snr(check: Json) -> float:
    """The SNR in dB of a check that compared; what is not finite is lower than any number."""
    value = check["metrics"].get("snr_db") if check["metrics"].get("finite") is True else None
    return -math.inf if value is None else float(value)


def snr_text(check: Json | None, unit: str = "dB") -> str:
    """The SNR of a check, or that there is none: `24.2 dB`."""
    if check is None:
        return NOT_MEASURED
    if check["metrics"].get("finite") is not True:
        return NOT_FINITE
    return show(check["metrics"].get("snr_db"), 1, unit)


# ---- which check ----


def lowest(checks: Iterable[Json]) -> Json | None:
    """The check with the lowest SNR; None if none compared anything."""
    return min((c for c in checks if c["metrics"]), key=snr, default=None)


def case_text(check: Json) -> str:
    """A check's case, with the size at which it was executed where that is not the artifact's."""
    size = check.get("size")
    return f"{check['case']} at {size}" if size else str(check["case"])


def kind(check: Json) -> FigureKind | None:
    """What a check's numbers are of; None where it has none."""
    if not check["metrics"]:
        return None
    if check["level"] == "conversion":
        return "program"
    if check["level"] == "compression":
        return "weights" if check["case"].startswith(WORST_WEIGHT) else "checkpoint"
    return "latents" if check["output"] == "latents" else "image"


def by_kind(checks: Iterable[Json]) -> dict[FigureKind, list[Json]]:
    """The checks that have numbers, by what these are of."""
    found = {name: list[Json]() for name in KINDS}
    for check in checks:
        if name := kind(check):
            found[name].append(check)
    return {name: of for name, of in found.items() if of}


def compressed(report: Json, component: str) -> bool:
    """Whether the component's weights are compressed; assumed where an older report says nothing
    of it and its bits do not tell."""
    if isinstance(known := report.get("compressed"), list):
        return component in known
    if report.get("bits") == UNCOMPRESSED:
        return False
    of = [c for c in report["checks"] if c["level"] == "compression"]
    return not of or any(c["component"] == component for c in of)


def figure(name: str, report: Json, component: str | None = None) -> Json | None:
    """The check that a figure comes from: the lowest SNR of a component, or of the whole artifact.

    Args:
        name: of `FIGURES`.

    Returns None where it was not measured, for the whole as soon as one component's was not.
    """
    if component is None:
        each = [figure(name, report, c) for c in compared(report)]
        found = [check for check in each if check is not None]
        return lowest(found) if len(found) == len(each) else None  # of no component: None
    of = [c for c in report["checks"] if c["component"] == component]
    program = [c for c in of if kind(c) == "program"]
    if name == "program" or not compressed(report, component):
        return lowest(program)
    outputs = [c for c in of if kind(c) == "checkpoint"]
    return lowest([*outputs, *program]) if outputs else None


def compared(report: Json) -> list[str]:
    """The components of which outputs were compared, in the pipeline's order."""
    seen = {c["component"] for c in report["checks"] if kind(c) in ("program", "checkpoint")}
    return [c for c in COMPONENTS if c in seen] + sorted(seen - COMPONENTS.keys())


def figures_json(report: Json) -> dict[str, Any]:
    """`snr_db` is the checkpoint's figure and `program_snr_db` the program's, in dB as the report's
    metrics are; null is not measured, or not finite. The whole artifact's, and each component's."""

    def both(component: str | None) -> dict[str, Any]:
        found = (figure(name, report, component) for name in FIGURES)
        values = (None if check is None else check["metrics"].get("snr_db") for check in found)
        return dict(zip(("snr_db", "program_snr_db"), values, strict=True))

    return {**both(None), "components": {c: both(c) for c in compared(report)}}


def is_one(report: Json, component: str | None = None) -> bool:
    """Whether both figures are one measurement, because no weight is compressed."""
    names = [component] if component else compared(report)
    return not any(compressed(report, name) for name in names)


def figures_line(report: Json) -> str:
    """Both figures of the whole in a line; empty where no outputs were compared."""
    if not compared(report):
        return ""
    found = {name: figure(name, report) for name in FIGURES}
    if is_one(report):
        return f"Lowest SNR: checkpoint and program {said(found['program'])}, no weight compressed"
    return "Lowest SNR: " + ", ".join(f"{name} {said(check)}" for name, check in found.items())


def said(check: Json | None) -> str:
    """A figure with where it was measured: `24.2 dB (unet, t=999, noise_pred)`."""
    if check is None:
        return NOT_MEASURED
    where = (check["component"], case_text(check), check["output"])
    return f"{snr_text(check)} ({', '.join(p for p in where if p)})"


# ---- how many ----


@dataclass(frozen=True)
class Counts:
    """How many checks there are, and how they came out; every entry of `checks` counts once."""

    total: int
    passed: int
    failed: int
    undecided: int

    def __str__(self) -> str:
        text = "1 check" if self.total == 1 else f"{self.total} checks"
        for how_many, word in ((self.failed, "failed"), (self.undecided, "without a verdict")):
            text += f", {how_many} {word}" if how_many else ""
        return text


def count(checks: Sequence[Json]) -> Counts:
    """The counts that terminal, page, JSON and JUnit agree on."""
    verdicts: list[Verdict] = [c["verdict"] for c in checks]
    how = (verdicts.count(v) for v in ("pass", "fail", "indeterminate"))
    return Counts(len(verdicts), *how)


# ---- what did not pass ----


def place(check: Json, artifact: str = "") -> str:
    """Where a check is, in one line."""
    parts = (artifact, check["level"], check["component"], case_text(check), check["output"])
    return " · ".join(p for p in parts if p)


def shortfalls(check: Json) -> list[tuple[Gate, float | None]]:
    """The gates that a check's numbers do not reach, with the numbers; None was not measured."""
    metrics = check["metrics"] or {}
    if check["verdict"] == "pass" or metrics.get("finite") is not True:
        return []
    gates = parse_gates(check["gate"], check["level"], check["component"]) or ()
    values = [(gate, number(metrics, gate.metric)) for gate in gates]
    return [(gate, v) for gate, v in values if v is None or not gate.holds(v)]


def found(check: Json) -> str:
    """What a check found, without its gate."""
    text = str(check["message"])
    for gate, _ in shortfalls(check):
        text = text.replace(f", {gate} is asked", "")
    return text


def problem(check: Json) -> str:
    """What a check found and what was asked, each once."""
    message = str(check["message"])
    if any(str(gate) in message for gate, _ in shortfalls(check)):
        return message
    return f"{message} (asked: {check['gate']})"


_SHORT = {
    "snr_db": "{:.1f}",
    "psnr_db": "{:.1f}",
    "fp16_error_ratio": "{:.1f}× fp16",
    "cosine": "cos {:.4f}",
    "ssim": "SSIM {:.3f}",
    "nrmse": "NRMSE {:.2g}",
    "max_abs": "max {:.2g}",
    "p99_abs": "p99 {:.2g}",
}


def cell(report: Json, component: str, name: str) -> tuple[bool, str]:
    """(whether it passed, text) of a component in a table with a row for each of `FIGURES`.

    Passed: the figure in dB, of pictures the lowest PSNR. Otherwise what failed, which need not be
    that figure; nothing where it cannot be said in a number. Failures of other levels than the
    figures' own are the checkpoint's row's.
    """
    own = [c for c in report["checks"] if c["component"] == component]
    if not is_one(report, component):
        own = [c for c in own if (c["level"] == "conversion") == (name == "program")]
    bad = [c for c in own if c["verdict"] != "pass"]
    if bad:
        return False, _failed(bad)
    if component == PIPELINE:
        psnr = [g["psnr_db"] for g in report.get("generations", []) if g["psnr_db"] is not None]
        return True, show(min(psnr, key=float), 1) if psnr else ""
    check = figure(name, report, component)
    if check is None:
        return True, NOT_MEASURED if component in compared(report) else ""
    return True, snr_text(check, "")


def _failed(bad: Sequence[Json]) -> str:
    """The worst number that did not reach its gate, SNR and PSNR before others."""
    if any(c["metrics"] and c["metrics"].get("finite") is not True for c in bad):
        return NOT_FINITE
    values: dict[str, list[float]] = {}
    for check in bad:
        for gate, value in shortfalls(check):
            if value is not None and not math.isnan(value):
                values.setdefault(gate.metric, []).append(value)
    for metric, text in _SHORT.items():
        if metric in values:
            worse = min if metric in HIGHER_IS_BETTER else max
            return text.format(worse(values[metric]))
    return ""
