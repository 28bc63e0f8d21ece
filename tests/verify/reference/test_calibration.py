"""Calibration: what is expected of mixed bits comes true, and comes twice alike."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.files import cache
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.recipe.sections import Compress
from convert.run.run import require_ours
from convert.source.download import Snapshot
from convert.values import Bits, Resolution
from convert.weights.allocation import Allocation, read_allocation
from convert.weights.compress import PALETTES, ComponentWeights, budget, options
from convert.weights.methods import component_weights
from convert.weights.mixed_bits import Measured, make_allocation, provisional
from convert.weights.palette import Histogram, fit
from sdxl_coreml import app
from verify.judge.metrics import compare
from verify.reference import calibration
from verify.reference.calibration import calibrate, measure, sensitivities
from verify.reference.recording import Case, record
from verify.reference.reference import Reference

COMPONENT = "text_encoder_2"


@pytest.fixture(scope="module")
def source(toy: Path) -> Checkpoint:
    return open_checkpoint(toy)


def weights_of(source: Checkpoint, component: str = COMPONENT) -> ComponentWeights:
    return component_weights(component, source.component_tensors(component), Compress())


def allocation_of(
    source: Checkpoint, bits: Bits, measured: dict[str, dict[str, Measured]]
) -> Allocation:
    weights = {component: weights_of(source, component) for component in measured}
    return make_allocation(weights, bits, "macOS14", measured)


@pytest.fixture(scope="module")
def cases(source: Checkpoint, one_thread: None) -> tuple[Case, ...]:
    return record(source, [COMPONENT], resolution=Resolution(64, 64)).cases[COMPONENT]


@pytest.fixture(scope="module")
def measured(source: Checkpoint, cases: tuple[Case, ...]) -> dict[str, Measured]:
    return measure(source, weights_of(source), cases)


def noise(
    source: Checkpoint, component: str, cases: tuple[Case, ...], widths: Mapping[str, str]
) -> list[float]:
    """Share of noise in every output of every case, with weights of these bits."""
    tensors = source.component_tensors(component)
    weights = {}
    for name, bits in widths.items():
        if bits != "16":
            weight = tensors[name].read(np.float16)
            histogram = Histogram()
            histogram.add(weight)
            palette = fit(histogram, int(bits), thorough=False)
            decoded = palette.lut[palette.indices(weight)].reshape(weight.shape)
            weights[name] = torch.from_numpy(decoded).float()
    found = []
    with Reference(source, component, weights=weights) as model:
        for case in cases:
            outputs = model(case.inputs)
            for name, expected in case.outputs.items():
                found.append(10 ** (-compare(expected, outputs[name]).snr_db / 10))
    return found


def snr_db(shares: Sequence[float]) -> float:
    return -10 * math.log10(sum(shares) / len(shares))


@pytest.mark.parametrize("bits", ["2", "4", "6"])
def test_expected_errors_come_true(
    source: Checkpoint, cases: tuple[Case, ...], measured: dict[str, Measured], bits: str
) -> None:
    expected = np.sum([facts.expected(bits) for facts in measured.values()], axis=0)
    shares = noise(source, COMPONENT, cases, dict.fromkeys(measured, bits))
    assert snr_db(expected) == pytest.approx(snr_db(shares), abs=1.5)


@pytest.mark.parametrize(("bits", "gain_db"), [("mixed-4.5", 0.5), ("mixed-5.0", 3.5)])
def test_mixed_bits_keep_more_than_uniform_ones(
    source: Checkpoint,
    cases: tuple[Case, ...],
    measured: dict[str, Measured],
    bits: str,
    gain_db: float,
) -> None:
    """At 4.5 bits some tensors get 2, whose errors are larger than gradients tell."""
    allocation = allocation_of(source, Bits(bits), {COMPONENT: measured})
    uniform = noise(source, COMPONENT, cases, dict.fromkeys(measured, "4"))
    mixed = noise(source, COMPONENT, cases, allocation.widths(COMPONENT))
    assert snr_db(mixed) > snr_db(uniform) + gain_db
    expected = sum(a.expected_error for a in allocation.components[COMPONENT].values())
    assert -10 * math.log10(expected) == pytest.approx(snr_db(mixed), abs=3)


BUDGETS = [f"{tenths / 10:.1f}" for tenths in range(25, 71, 5)]


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_gradients_deal_widths_better_than_chance_at_the_same_budget(
    source: Checkpoint, one_thread: None, component: str
) -> None:
    """Against widths that are dealt without gradients, at every half bit, mean and worst output."""
    cases = record(source, [component], resolution=Resolution(64, 64)).cases[component]
    measured = measure(source, weights_of(source, component), cases)
    weights = weights_of(source, component)
    sizes = options(weights, "macOS14")
    gains = []
    for budgeted in BUDGETS:
        bits = Bits(f"mixed-{budgeted}")
        allocation = allocation_of(source, bits, {component: measured})
        alike = noise(
            source,
            component,
            cases,
            provisional(sizes, budget(weights, bits), weights.component, bits),
        )
        mixed = noise(source, component, cases, allocation.widths(component))
        gains.append(snr_db(mixed) - snr_db(alike))
        assert gains[-1] > 0, (budgeted, gains[-1])
        assert max(mixed) < max(alike), (budgeted, 10 * math.log10(max(alike) / max(mixed)))
    assert sum(gains) / len(gains) > 2


def test_an_output_feels_only_the_weights_before_it(
    source: Checkpoint, cases: tuple[Case, ...], measured: dict[str, Measured]
) -> None:
    assert all(facts.sensitivity > 0 for facts in measured.values())
    again = sensitivities(source, weights_of(source), cases)
    assert {n: (sums.sensitivities, sums.energy) for n, sums in again.items()} == {
        n: (facts.sensitivities, facts.energy) for n, facts in measured.items()
    }
    # All drifts are as much more, or less, than small steps say.
    ratios = [
        drift / small
        for name, facts in measured.items()
        for drift, small in zip(facts.drifts, again[name].drifts, strict=True)
        if small > 0
    ]
    assert max(ratios) == pytest.approx(min(ratios), rel=2e-3)  # four digits are kept
    # Only the pooled output comes after the last layer; the hidden states are the last but one's.
    alone = [Case(c.name, c.inputs, {}) for c in cases[:1]]
    hidden, pooled = sensitivities(source, weights_of(source), alone)[
        "text_projection.weight"
    ].sensitivities
    assert hidden == 0 < pooled


def convert(monkeypatch: pytest.MonkeyPatch, toy: Path, out: Path, *options: object) -> Path:
    arguments = ["convert", toy, "--out", out, "--component", COMPONENT, "--bits", "mixed-4.5"]
    words = [*arguments, "--resolution", "64x64", "--quiet", *options]
    monkeypatch.setattr(sys, "argv", ["sdxl-coreml", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 0
    (artifact,) = out.glob("*mixed-4.5*")
    return artifact


@pytest.mark.usefixtures("one_thread")
def test_convert_measures_them_and_twice_gives_the_same_bytes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = convert(monkeypatch, toy, tmp_path / "one")
    other = convert(monkeypatch, toy, tmp_path / "other")
    given = convert(monkeypatch, toy, tmp_path / "given", "--allocation", one / "allocation.json")
    weights = "TextEncoder2.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    for file in (weights, "allocation.json"):
        assert (
            (one / file).read_bytes() == (other / file).read_bytes() == (given / file).read_bytes()
        )
    allocation = read_allocation(one / "allocation.json")
    assert 4.3 < allocation.average_bits[COMPONENT] <= 4.5
    assert len(set(allocation.widths(COMPONENT).values())) > 1


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_calibration_keeps_what_was_measured(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every case, every batch of palettes and every file's digest is had once."""
    recipe = parse_recipe(
        'name = "toy"\nsource.path = "toy"\n'
        'matrix = { attention = ["original"], resolution = ["64x64"], bits = ["mixed-4.5"] }\n',
        where="test",
    )
    plan = make_plan(recipe, source, components=[COMPONENT])
    snapshot = Snapshot(source.path, None, None, ())
    monkeypatch.setattr(calibration, "BATCH", 50_000)
    done: list[str] = []
    limits = [10**6]

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) >= limits[-1]:
                raise KeyboardInterrupt
            done.append(name)
            return real(*arguments, **options)

        return call

    for place, attribute, name in (
        (Reference, "differentiable", "case"),
        (calibration, "palette_errors", "palette"),
        (cache, "digest_file", "digest"),
    ):
        monkeypatch.setattr(place, attribute, counted(name, getattr(place, attribute)))
    whole = calibrate(plan, snapshot, tmp_path / "whole").allocations
    every = list(done)
    assert every.count("case") == 4
    done.clear()
    out = tmp_path / "out"
    for limit in (2, every.index("case") + 2, len(every) - 1):
        limits.append(limit)
        with pytest.raises(KeyboardInterrupt):
            calibrate(plan, snapshot, out)
        assert done == every[:limit]  # nothing was done twice until now
        assert [path.name for path in out.iterdir()] == [".cache"]
        require_ours(out, plan)
    limits.append(10**6)
    assert calibrate(plan, snapshot, out).allocations == whole
    again = done[len(every) - 1 :]  # of the batch that was not finished
    assert set(again) == {"palette"}
    assert len(again) < every.count("palette") / 2


def test_other_text_encoders_are_another_calibration_of_the_unet(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recorded inputs come from them, although they are not converted."""
    asked: list[str] = []

    def measure_nothing(
        checkpoint: Checkpoint,
        weights: ComponentWeights,
        cases: object,
        *,
        keep: calibration.Keep,
        **_: object,
    ) -> dict[str, Measured]:
        keep("all", lambda: asked.append(weights.component))
        errors = {bits: 4.0 ** -int(bits) for bits in PALETTES}
        return {name: Measured((1.0,), errors) for name in weights.compressible}

    monkeypatch.setattr(calibration, "measure", measure_nothing)
    folder = shutil.copytree(toy, tmp_path / "toy")
    recipe = parse_recipe(
        'name = "toy"\nsource.path = "toy"\n'
        'matrix = { attention = ["original"], resolution = ["64x64"], bits = ["mixed-4.5"] }\n',
        where="test",
    )
    for times in (1, 1, 2):
        if times == 2:
            weights = bytearray((folder / "text_encoder/model.safetensors").read_bytes())
            weights[-1] ^= 1
            (folder / "text_encoder/model.safetensors").write_bytes(weights)
        plan = make_plan(recipe, open_checkpoint(folder), components=["unet"])
        calibrate(plan, Snapshot(folder, None, None, ()), tmp_path / "out")
        assert asked == ["unet"] * times


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_on_the_toys_unet_mixed_bits_keep_more_than_uniform_ones(source: Checkpoint) -> None:
    cases = record(source, ["unet"], resolution=Resolution(128, 128)).cases["unet"]
    measured = measure(source, weights_of(source, "unet"), cases)

    def lowest(bits: str) -> float:
        widths = dict.fromkeys(measured, bits)
        if bits.startswith("mixed"):
            made = allocation_of(source, Bits(bits), {"unet": measured})
            widths = made.widths("unet")
        return -10 * math.log10(max(noise(source, "unet", cases, widths)))

    weights = weights_of(source, "unet")
    sizes = options(weights, "macOS14")
    for bits in (Bits("mixed-3.0"), Bits("mixed-4.5"), Bits("mixed-6.0")):
        made = allocation_of(source, bits, {"unet": measured})
        mixed = noise(source, "unet", cases, made.widths("unet"))
        alike = noise(
            source,
            "unet",
            cases,
            provisional(sizes, budget(weights, bits), weights.component, bits),
        )
        assert max(mixed) < max(alike)
        assert snr_db(mixed) > snr_db(alike)
    assert lowest("mixed-4.5") >= lowest("4") + 3
    assert lowest("mixed-6.0") >= lowest("6")
