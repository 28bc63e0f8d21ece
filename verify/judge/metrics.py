"""How far an output is from its reference, in numbers whose definitions are fixed here.

- `snr_db`, the primary measure: 10·log10(Σref² / Σ(ref − out)²), in decibels.
- `nrmse`: √(Σ(ref − out)² / Σref²), the same as 10^(−snr_db / 20).
- `cosine`: Σref·out / (|ref|·|out|).
- `max_abs`, `p99_abs`: the largest |ref − out| and its 99th percentile.

Sums are accumulated in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.errors import CannotExecute

SNR = "SNR = 10·log10(Σref² / Σ(ref − out)²)"


@dataclass(frozen=True)
class Metrics:
    """The distance of one output from its reference; the module says what each number means.

    Where a value of either side is not finite, `finite` is False, every number is NaN, and
    `max_index` is the place of the first such value. That is a failure under every policy.
    """

    snr_db: float  # inf if identical, -inf if the reference is all zeros and the output is not
    nrmse: float
    cosine: float  # NaN if just one of the two is all zeros
    max_abs: float
    p99_abs: float
    max_index: tuple[int, ...]  # of max_abs
    finite: bool
    problem: str | None = None  # which value is not finite

    def to_json(self) -> dict[str, Any]:
        """The measures by name; infinities are the strings "inf" and "-inf", NaN is null."""
        found: dict[str, Any] = {
            name: json_number(getattr(self, name))
            for name in ("snr_db", "nrmse", "cosine", "max_abs", "p99_abs")
        }
        found["max_index"] = list(self.max_index)
        found["finite"] = self.finite
        return found


def json_number(value: float) -> float | str | None:
    """A float as JSON can say it: "inf", "-inf" and null stand for what JSON has no token for."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def compare(reference: Any, output: Any) -> Metrics:
    """Compare an output with its reference.

    Args:
        reference, output: arrays or tensors of one shape, of any float dtype.

    Raises:
        CannotExecute: the shapes differ, or there is nothing to compare.
    """
    ref, out = _array(reference), _array(output)
    if ref.shape != out.shape:
        raise CannotExecute(f"the output has shape {list(out.shape)}, its reference {ref.shape}")
    if ref.size == 0:
        raise CannotExecute("there is nothing to compare: the arrays are empty")
    for name, array in (("reference", ref), ("output", out)):
        bad = ~np.isfinite(array)
        if bad.any():
            index = _index(int(np.argmax(bad)), array.shape)
            problem = f"the {name} is {array[index]} at {list(index)}"
            if (more := int(bad.sum()) - 1) > 0:
                problem += f" and not finite at {more} more places"
            nan = math.nan
            return Metrics(nan, nan, nan, nan, nan, index, False, problem)
    error = np.abs(ref - out)
    noise, signal = float(np.square(error).sum()), float(np.square(ref).sum())
    power = float(np.square(out).sum())
    nrmse = 0.0 if noise == 0 else math.sqrt(noise / signal) if signal else math.inf
    if noise == 0:
        cosine = 1.0
    elif signal and power:
        cosine = float((ref * out).sum()) / math.sqrt(signal * power)
    else:
        cosine = math.nan
    return Metrics(
        snr_db=_snr_db(signal, noise),
        nrmse=nrmse,
        cosine=cosine,
        max_abs=float(error.max()),
        p99_abs=float(np.quantile(error, 0.99)),
        max_index=_index(int(np.argmax(error)), error.shape),
        finite=True,
    )


def _snr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, perhaps on another device or in bfloat16
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
