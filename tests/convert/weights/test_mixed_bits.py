"""Mixed bits: the allocation is the best one, keeps its average, and travels as a file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.recipe.sections import Compress
from convert.values import Bits, DeploymentTarget
from convert.weights.allocation import Allocation, read_allocation
from convert.weights.compress import PALETTES, ComponentWeights, budget, is_compressible, options
from convert.weights.methods import component_weights
from convert.weights.mixed_bits import (
    Measured,
    Option,
    allocate,
    least_errors,
    make_allocation,
)
from convert.weights.palette import Histogram, fit, palette_errors

MIXED = Bits("mixed-4.5")
SIXTEENTHS = {bits: 4.0 ** -int(bits) for bits in ("1", "2", "4", "6", "8")}


def error_of(choices: dict[str, list[Option]], bits: dict[str, str]) -> float:
    return sum(o.error for name, of in choices.items() for o in of if o.bits == bits[name])


def bytes_of(choices: dict[str, list[Option]], bits: dict[str, str]) -> int:
    return sum(o.bytes for name, of in choices.items() for o in of if o.bits == bits[name])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    sensitive=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5),
    fill=st.floats(0, 1),
)
def test_it_is_near_the_best_of_all_allocations(
    sizes: list[int], sensitive: list[float], fill: float
) -> None:
    widths = ("1", "2", "4", "6", "8")
    choices = {
        f"t{i}": [Option(w, size * int(w), sensitive[i] * size * 4.0 ** -int(w)) for w in widths]
        for i, size in enumerate(sizes)
    }
    low, high = sum(sizes), 8 * sum(sizes)
    limit = int(low + fill * (high - low))
    found = allocate(choices, limit)
    assert bytes_of(choices, found) <= limit
    best = min(
        error_of(choices, dict(zip(choices, combination, strict=True)))
        for combination in itertools.product(widths, repeat=len(sizes))
        if bytes_of(choices, dict(zip(choices, combination, strict=True))) <= limit
    )
    # What one step of one tensor is worth is all that filling up may miss.
    steps = max(
        one.error - other.error for of in choices.values() for one, other in itertools.pairwise(of)
    )
    assert best <= error_of(choices, found) <= best + steps


def test_many_tensors_are_allocated_as_well_as_any_real_numbers_could_be() -> None:
    """The bound of the relaxed problem: steps of the hulls, and of the last one a part."""
    widths = (1, 2, 4, 6, 8)
    choices = {
        f"t{i:03}": [
            Option(str(w), (1 + i % 7) * w * 100 + 64, (i % 11 + 1) * (1 + i % 7) * 4.0**-w)
            for w in widths
        ]
        for i in range(300)
    }
    limit = sum(of[2].bytes for of in choices.values())
    found = allocate(choices, limit)
    spent = sum(of[0].bytes for of in choices.values())
    bound = sum(of[0].error for of in choices.values())
    steps = sorted(
        ((a.error - b.error) / (b.bytes - a.bytes), b.bytes - a.bytes)
        for of in choices.values()
        for a, b in itertools.pairwise(of)
    )
    while steps and spent < limit:
        slope, size = steps.pop()
        size = min(size, limit - spent)
        spent, bound = spent + size, bound - slope * size
    assert bound * 0.999999 <= error_of(choices, found) <= bound * 1.002
    assert bytes_of(choices, found) > 0.999 * limit


def test_equal_tensors_are_told_apart_by_name() -> None:
    of = [Option("1", 1, 1.0), Option("2", 2, 0.25)]
    assert allocate({"b": of, "a": of}, 3) == {"a": "2", "b": "1"}


def test_an_output_that_loses_more_counts_more() -> None:
    """Fourteen tensors reach one output, three another; alike, the first would lose most."""
    facts = {f"a{i}": Measured((1 + i / 10, 0.0), SIXTEENTHS) for i in range(14)}
    facts |= {f"b{i}": Measured((0.0, 2 + i / 5), SIXTEENTHS) for i in range(3)}
    sizes = {name: {bits: 100 * int(bits) for bits in SIXTEENTHS} for name in facts}
    limit = 500 * len(facts)
    choices = {
        name: [Option(bits, size, sum(facts[name].expected(bits))) for bits, size in of.items()]
        for name, of in sizes.items()
    }

    def lost(widths: dict[str, str]) -> list[float]:
        return [
            sum(facts[n].expected(bits)[output] for n, bits in widths.items()) for output in (0, 1)
        ]

    found, alike = lost(least_errors(sizes, facts, limit)), lost(allocate(choices, limit))
    assert max(found) < 0.7 * max(alike)
    assert sum(found) < 1.2 * sum(alike)


def test_errors_are_those_of_the_palettes(toy: Path) -> None:
    tensor = open_checkpoint(toy).component_tensors("text_encoder")[
        "encoder.layers.0.mlp.fc1.weight"
    ]
    histogram = Histogram()
    histogram.add(tensor.read(np.float16))
    errors = palette_errors(tensor)
    assert set(errors) == set(PALETTES)
    for bits, tolerance in (("6", 0.03), ("4", 0.02), ("3", 0.02), ("2", 0.02), ("1", 0.02)):
        best = fit(histogram, int(bits)).error(histogram)
        assert errors[bits] == pytest.approx(best, rel=tolerance)
    best = fit(histogram, 8).error(histogram)
    assert best / 2 < errors["8"] < 4 * best  # a few thousand values are not many


@pytest.fixture(scope="module")
def source(toy: Path) -> Checkpoint:
    return open_checkpoint(toy)


def weights_of(source: Checkpoint, compress: Compress | None = None) -> ComponentWeights:
    tensors = source.component_tensors("text_encoder_2")
    return component_weights("text_encoder_2", tensors, compress or Compress())


def allocation_of(
    source: Checkpoint,
    measured: dict[str, Measured],
    target: DeploymentTarget,
    compress: Compress | None = None,
) -> Allocation:
    weights = {"text_encoder_2": weights_of(source, compress)}
    return make_allocation(weights, MIXED, target, {"text_encoder_2": measured})


@pytest.fixture(scope="module")
def measured(source: Checkpoint) -> dict[str, Measured]:
    """Of text encoder 2, made up."""
    tensors = source.component_tensors("text_encoder_2")
    wanted = {n: t for n, t in sorted(tensors.items()) if is_compressible(n, t)}
    return {
        name: Measured(
            (10.0 ** -(number % 5),), {b: tensor.size * 4.0 ** -int(b) for b in PALETTES}
        )
        for number, (name, tensor) in enumerate(wanted.items())
    }


def test_the_average_counts_all_that_is_stored(
    source: Checkpoint, measured: dict[str, Measured]
) -> None:
    allocation = allocation_of(source, measured, "macOS15")
    assert 4.4 < allocation.average_bits["text_encoder_2"] <= 4.5
    widths = allocation.widths("text_encoder_2")
    assert len(set(widths.values())) > 1
    weights = weights_of(source)
    sizes = options(weights, "macOS15")
    stored = sum(sizes[name][bits] for name, bits in widths.items())
    assert stored <= budget(weights, MIXED)
    # The more sensitive of two tensors alike never has fewer bits.
    q = [n for n in widths if n.endswith("q_proj.weight")]
    ordered = sorted(q, key=lambda n: measured[n].sensitivity)
    assert [int(widths[n]) for n in ordered] == sorted(int(widths[n]) for n in ordered)


def test_three_bits_are_for_targets_that_hold_them(source: Checkpoint) -> None:
    (old, new) = (options(weights_of(source), target) for target in ("macOS14", "iOS18"))
    assert not any("3" in of for of in old.values())
    assert all("3" in of for of in new.values())


RECIPE = """
name = "toy"
source.path = "toy"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["mixed-4.5"] }
"""


def plan_with(source: Checkpoint, file: Path, bits: str = "mixed-4.5", more: str = "") -> object:
    text = RECIPE.replace("mixed-4.5", bits) + f'compress.allocation = "{file}"\n' + more
    recipe = parse_recipe(text, where="test")
    return make_plan(recipe, source, components=["text_encoder_2"])


def test_a_file_is_read_as_it_was_written_and_decides(
    source: Checkpoint, measured: dict[str, Measured], tmp_path: Path
) -> None:
    made = allocation_of(source, measured, "macOS14")
    file = tmp_path / "allocation.json"
    file.write_text(made.text(), "utf-8")
    assert read_allocation(file) == made
    plan = plan_with(source, file)
    assert plan.unmeasured == ()
    (job,) = plan.jobs
    given = {n: b for n, b in made.widths("text_encoder_2").items() if b != "16"}
    assert {name: method.bits for name, method in job.compression.methods} == given


def test_an_allocation_that_does_not_fit_is_refused(
    source: Checkpoint, measured: dict[str, Measured], tmp_path: Path
) -> None:
    made = allocation_of(source, measured, "iOS18")
    file = tmp_path / "allocation.json"
    name = sorted(measured)[0]

    def widen(t: dict[str, dict[str, object]]) -> None:
        for facts in t.values():
            facts["bits"] = "8"

    def refused(change: object, says: str, **options: str) -> None:
        document = json.loads(made.text())
        change(document["components"]["text_encoder_2"]["tensors"])
        file.write_text(json.dumps(document), "utf-8")
        with pytest.raises(InputError) as caught:
            plan_with(source, file, **options)
        assert str(caught.value).startswith(f"{file}: ")
        assert says in str(caught.value)

    refused(lambda t: t.pop(name), f"lacks a width for text_encoder_2's `{name}`")
    refused(lambda t: t.update({"x": t[name]}), "an unknown tensor, text_encoder_2's `x`")
    refused(lambda t: t[name].update(shape=[1, 2]), f"`{name}` as [1, 2]; the checkpoint's is")
    refused(lambda t: t[name].update(bits="5"), f"gives text_encoder_2's `{name}` 5 bits")
    refused(lambda t: t[name].update(bits="3"), "3 bits, which need a deployment target of macOS15")
    refused(lambda t: t[name].pop("bits"), ".bits` is missing")
    refused(widen, "the widths of text_encoder_2 average 8.")
    refused(lambda t: None, "is for mixed-4.5; mixed-6.0 is asked for", bits="mixed-6.0")
    file.write_text("no JSON", "utf-8")
    with pytest.raises(InputError, match="not readable as JSON"):
        plan_with(source, file)
    with pytest.raises(InputError, match="missing"):
        plan_with(source, tmp_path / "none.json")


def test_an_average_below_the_narrowest_palettes_is_refused_before_any_work(
    source: Checkpoint,
) -> None:
    recipe = parse_recipe(RECIPE.replace("4.5", "1.0"), where="test")
    with pytest.raises(InputError) as caught:
        make_plan(recipe, source)
    assert "cannot average 1.0 bits: its narrowest palettes take more" in str(caught.value)
    assert "The smallest is mixed-1." in str(caught.value)


def test_a_plan_knows_the_bytes_before_anything_is_measured(source: Checkpoint) -> None:
    plan = make_plan(parse_recipe(RECIPE, where="test"), source, components=["unet"])
    assert plan.unmeasured == ("mixed-4.5",)
    tensors = source.component_tensors("unet")
    (job,) = plan.jobs
    wanted = {n: t for n, t in tensors.items() if is_compressible(n, t)}
    average = 8 * job.compression.stored_bytes(wanted, 2) / sum(t.size for t in wanted.values())
    assert 4.4 < average <= 4.5


def test_overrides_come_first(source: Checkpoint, measured: dict[str, Measured]) -> None:
    name = sorted(measured)[0]
    text = RECIPE + (
        f'[[compress.tensors]]\ncomponent = "text_encoder_2"\nname = "{name}"\nbits = "16"\n'
    )
    compress = parse_recipe(text, where="test").compress
    made = allocation_of(source, measured, "macOS14", compress)
    assert made.widths("text_encoder_2")[name] == "16"
    assert made.average_bits["text_encoder_2"] <= 4.5
