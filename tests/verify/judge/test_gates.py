"""Gates hold where they say, and nothing passes that was not found finite."""

from __future__ import annotations

from typing import Any

import pytest

from convert.recipe.sections import CompressionGate
from verify.judge.gates import Gate, judge, recipe_gates


def gate(level: str = "compression", *, at_least: bool = True, value: float = 20.0) -> Gate:
    metric = "snr_db" if at_least else "nrmse"
    return Gate(level, ("unet",), metric, at_least, value, "a reason")


@pytest.mark.parametrize("metrics", [{"snr_db": 50.0}, {"snr_db": 50.0, "finite": None}])
def test_what_nobody_found_finite_fails(metrics: dict[str, Any]) -> None:
    assert judge([gate()], metrics).verdict == "fail"
    assert judge([gate()], {**metrics, "finite": True}).verdict == "pass"


def test_a_gate_on_compression_is_on_outputs_and_not_on_weights() -> None:
    assert gate().judges("compression", "unet", "noise_pred")
    assert not gate().judges("compression", "unet", "conv_in.weight")
    assert not gate().judges("compression", "vae_decoder", "image")
    assert not gate().judges("conversion", "unet", "noise_pred")


@pytest.mark.parametrize(
    ("at_least", "old", "new", "is_loosened"),
    [
        (True, 20.0, 19.0, True),
        (True, 20.0, 21.0, False),
        (True, 20.0, 20.0, False),
        (False, 0.1, 0.2, True),
        (False, 0.1, 0.05, False),
    ],
)
def test_a_lower_bar_is_loosened_and_a_higher_is_not(
    at_least: bool, old: float, new: float, is_loosened: bool
) -> None:
    before, after = (gate(at_least=at_least, value=value) for value in (old, new))
    assert after.loosened_from(before) == is_loosened


def test_a_gate_on_another_side_is_loosened() -> None:
    assert gate(at_least=False).loosened_from(gate(at_least=True))


def test_a_recipes_gate_is_for_weights_of_its_bits() -> None:
    asked = [CompressionGate.model_validate({"component": "unet", "bits": "6", "min_snr_db": 20})]
    assert [str(g) for g in recipe_gates(asked, "6")] == ["snr_db >= 20"]
    assert recipe_gates(asked, "8") == ()
    assert recipe_gates(asked, None) == ()
