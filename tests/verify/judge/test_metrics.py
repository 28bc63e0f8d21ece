"""Metrics: exact definitions, and nothing that is not a number ever passes for one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from convert.errors import CannotExecute
from verify.judge.metrics import compare


def test_snr_is_signal_over_error_in_decibels() -> None:
    metrics = compare(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert metrics.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert metrics.nrmse == pytest.approx(0.1)
    assert metrics.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert metrics.max_abs == 0.5
    assert metrics.max_index == (1,)
    assert metrics.p99_abs == pytest.approx(0.495)
    assert metrics.finite


def test_sums_are_accumulated_in_float64() -> None:
    reference = np.full(1 << 20, 300, np.float16)  # its squares overflow float16
    metrics = compare(reference, reference + np.float16(0.25))
    assert metrics.snr_db == pytest.approx(20 * math.log10(300 / 0.25))


def test_identical_outputs_have_infinite_snr() -> None:
    metrics = compare(torch.ones(2, 3), torch.ones(2, 3))
    assert (metrics.snr_db, metrics.nrmse, metrics.cosine) == (math.inf, 0, 1)


def test_a_reference_of_zeros_is_not_a_division_by_zero() -> None:
    same = compare(np.zeros(4), np.zeros(4))
    other = compare(np.zeros(4), np.ones(4))
    assert same.snr_db == math.inf
    assert (other.snr_db, other.nrmse) == (-math.inf, math.inf)
    assert math.isnan(other.cosine)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "output"])
def test_what_is_not_finite_has_no_snr(bad: float, side: str) -> None:
    arrays = {"reference": np.ones((2, 3)), "output": np.ones((2, 3))}
    arrays[side][1, 2] = bad
    metrics = compare(**arrays)
    assert not metrics.finite
    assert math.isnan(metrics.snr_db)
    assert metrics.max_index == (1, 2)
    assert metrics.problem is not None
    assert side in metrics.problem


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((4,), (1, 4)), ((0,), (0,))])
def test_different_shapes_and_empty_arrays_are_errors(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    with pytest.raises(CannotExecute):
        compare(np.ones(shapes[0]), np.ones(shapes[1]))


def test_json_has_no_tokens_that_json_does_not_know() -> None:
    for output in (np.zeros(2), np.ones(2), np.array([math.nan, 0])):
        text = json.dumps(compare(np.zeros(2), output).to_json(), allow_nan=False)
        assert json.loads(text)["finite"] == bool(np.isfinite(output).all())
    assert compare(np.zeros(2), np.zeros(2)).to_json()["snr_db"] == "inf"
