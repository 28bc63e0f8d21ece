"""Gates: one threshold on one measure, and what a comparison's numbers make of them.

Numbers that are just measured and numbers read from a JSON report are judged by the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from convert.components import COMPONENTS
from convert.recipe.sections import CompressionGate
from convert.values import Verdict
from verify.judge.checks import PIPELINE, worst

TensorMetric = Literal["snr_db", "nrmse", "cosine", "max_abs", "p99_abs"]
ImageMetric = Literal["psnr_db", "ssim"]  # of output `image` at level `generation` alone
Metric = Literal[TensorMetric, "fp16_error_ratio", ImageMetric]
TENSOR_METRICS: tuple[TensorMetric, ...] = get_args(TensorMetric)
RATIO = "fp16_error_ratio"
IMAGE_METRICS: tuple[ImageMetric, ...] = get_args(ImageMetric)
METRICS: tuple[Metric, ...] = get_args(Metric)
HIGHER_IS_BETTER = ("snr_db", "cosine", "psnr_db", "ssim")
JudgedLevel = Literal["conversion", "compression", "generation"]
# level → what is judged there
LEVELS: dict[JudgedLevel, tuple[str, ...]] = {
    "conversion": tuple(COMPONENTS),
    "compression": tuple(COMPONENTS),
    "generation": (PIPELINE,),
}
FINITE = "finite"  # the gate of what is recorded without a threshold


@dataclass(frozen=True)
class Gate:
    """One threshold on one measure; `outputs` and `bits` are empty where it holds for all."""

    level: str
    components: tuple[str, ...]
    metric: str
    at_least: bool  # or else at most
    value: float
    why: str
    outputs: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:.10g}"

    def holds(self, value: float) -> bool:
        """Whether a value passes; NaN never does."""
        return value >= self.value if self.at_least else value <= self.value

    def judges(self, level: str, component: str, output: str | None) -> bool:
        """Whether the gate is on this output, at whatever bits."""
        if level != self.level or component not in self.components:
            return False
        if not self.outputs and level == "compression":
            return output in COMPONENTS[component].outputs  # and not a weight
        return not self.outputs or output in self.outputs

    def loosened_from(self, other: Gate) -> bool:
        """Whether the gate lets pass what another one on the same measure does not."""
        return not (self.at_least == other.at_least and other.holds(self.value))


@dataclass(frozen=True)
class Judgement:
    """What gates make of one comparison."""

    gate: str
    verdict: Verdict
    message: str


def judge(gates: Sequence[Gate], metrics: Mapping[str, Any], problem: str = "") -> Judgement:
    """Judge one comparison by some gates; whatever they are, it must be finite.

    Args:
        metrics: numbers by name, as `number` reads them, and whether they are `finite`.
        problem: why the verdict cannot be pass, whatever the numbers are.
    """
    gates = list({str(gate): gate for gate in gates}.values())
    text = " and ".join(map(str, gates)) or FINITE
    if metrics.get("finite") is not True:
        return Judgement(text, "fail", metrics.get("problem") or "not finite")
    verdicts: list[Verdict] = ["indeterminate" if problem else "pass"]
    found = [problem] if problem else []
    for gate in gates:
        value = number(metrics, gate.metric)
        if value is None:
            verdicts.append("indeterminate")
            found.append(f"{gate.metric} was not measured, {gate} is asked")
        elif not gate.holds(value):
            verdicts.append("fail")
            found.append(f"{gate.metric} is {value:.4g}, {gate} is asked")
    return Judgement(text, worst(verdicts), "; ".join(found))


def recipe_gates(asked: Sequence[CompressionGate], bits: str | None) -> tuple[Gate, ...]:
    """A recipe's own gates for weights of these bits."""
    found = []
    for gate in asked:
        for level, output, metric, value in (
            ("compression", None, "snr_db", gate.min_snr_db),
            ("generation", "latents", "cosine", gate.min_latents_cosine),
            ("generation", "image", "psnr_db", gate.min_psnr_db),
        ):
            if value is not None and gate.bits == bits:
                outputs = () if output is None else (output,)
                found.append(
                    Gate(level, (gate.component,), metric, True, value, "the recipe's", outputs)
                )
    return tuple(found)


def number(metrics: Mapping[str, Any], name: str) -> float | None:
    """One measure, from numbers as they are or as JSON says them; None if nobody measured it.

    The strings "inf" and "-inf" are infinite. A null is NaN among the measures that every
    comparison has; of the others it means that there was nothing to measure with.
    """
    if metrics.get(name) is not None:
        return float(metrics[name])
    return math.nan if name in metrics and name in TENSOR_METRICS else None


def parse_gates(text: str, level: str, component: str) -> tuple[Gate, ...] | None:
    """The gates that a check's text says (`snr_db >= 20 and nrmse <= 0.1`); None if it is prose."""
    if text == FINITE:
        return ()
    gates = []
    for part in text.split(" and "):
        words = part.split()
        if len(words) != 3 or words[0] not in METRICS or words[1] not in (">=", "<="):
            return None
        try:
            value = float(words[2])
        except ValueError:
            return None
        gates.append(Gate(level, (component,), words[0], words[1] == ">=", value, "as recorded"))
    return tuple(gates)
