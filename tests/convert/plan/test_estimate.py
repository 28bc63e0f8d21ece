"""Estimates from headers: near the truth, and a run that cannot end does not start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from convert.errors import InputError
from convert.lora.apply import Lora, apply
from convert.opening.door import open_checkpoint
from convert.plan.estimate import (
    CHANGED_PER_SECOND,
    MERGED_PER_SECOND,
    available_memory,
    count_ops,
    estimate,
)
from convert.plan.plan import Plan, make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from tests.support.loras import tensors_of, write_lora

RECIPE = """
name = "toy"
[source]
path = "toy"
[matrix]
attention = ["original", "split_einsum", "split_einsum_v2"]
resolution = ["128x128", "256x320"]
"""


@pytest.fixture(scope="module")
def plan(toy: Path) -> Plan:
    return make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))


def disk_use(folder: Path) -> int:
    files = {p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return sum(files.values())


def test_bytes_are_within_a_tenth(plan: Plan, toy: Path, tmp_path: Path) -> None:
    run(plan, Snapshot(toy, None, None, ()), tmp_path / "out")
    expected = estimate(plan, plan.jobs)
    assert disk_use(tmp_path / "out") == pytest.approx(expected.bytes, rel=0.1)


@pytest.mark.parametrize("shape", ["base", "no_mid_attention"])
def test_ops_are_within_a_tenth(shapes: Mapping[str, Path], shape: str) -> None:
    from convert.networks.build import build_network

    checkpoint = open_checkpoint(shapes[shape])
    large = RECIPE.replace('"128x128", "256x320"', '"512x512"')  # split_einsum_v2 has chunks
    plan = make_plan(parse_recipe(large, where="test"), checkpoint)
    for job in plan.jobs:
        network = build_network(
            checkpoint,
            job.component,
            resolution=job.resolution,
            attention=job.attention,
            dtype=job.precision,
            deployment=job.deployment,
        )
        ops = len(network.program.functions["main"].operations)
        assert count_ops(plan, job) == pytest.approx(ops, rel=0.1), job


def test_a_plan_knows_nothing_of_coremltools() -> None:
    code = "import sys, convert.plan.text; sys.exit('coremltools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_of_nothing_takes_nothing(plan: Plan) -> None:
    expected = estimate(plan, [])
    assert (expected.bytes, expected.seconds(1)) == (0, 0)


def test_shared_weights_count_once(plan: Plan) -> None:
    one = estimate(plan, [j for j in plan.jobs if j.component == "unet"][:1])
    all_unets = estimate(plan, [j for j in plan.jobs if j.component == "unet"])
    assert all_unets.weight_bytes == one.weight_bytes
    assert all_unets.graph_seconds > 5 * one.graph_seconds


def test_merging_takes_time_by_weights_and_loras(toy: Path, tmp_path: Path) -> None:
    module = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    checkpoint = open_checkpoint(toy)
    tensor = checkpoint.part("unet").tensors[f"{module}.weight"]
    lora = Lora(
        write_lora(
            tmp_path / "a.safetensors",
            {f"unet.{module}": tensors_of("DoRA of outputs", tensor.shape)},
        )
    )
    recipe = parse_recipe(RECIPE, where="test")

    def more(*loras: Lora) -> float:
        merged = make_plan(recipe, apply(checkpoint, loras)[0])
        expected = estimate(merged, merged.jobs)
        assert expected.longest_seconds == expected.compute_seconds  # of the UNet alone, and once
        return expected.seconds(1) - plain

    plain = 0.0
    plain = more()
    one, two = more(lora), more(lora, lora)
    assert one == pytest.approx(tensor.size * (1 / MERGED_PER_SECOND + 1 / CHANGED_PER_SECOND))
    assert two - one == pytest.approx(tensor.size / CHANGED_PER_SECOND)


def test_too_little_memory_is_refused_before_any_work(
    plan: Plan, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.plan.estimate.available_memory", lambda: 100_000_000)
    with pytest.raises(InputError, match=r"not enough memory: .*, 100 MB available") as caught:
        run(plan, Snapshot(toy, None, None, ()), tmp_path / "out")
    assert "Free" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_available_memory_is_known_here() -> None:
    assert (available_memory() or 0) > 1 << 28
