"""What makes two packages' weight files one: the plan and the cache answer alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from convert.checkpoint.checkpoint import open_checkpoint
from convert.plan.plan import Plan, make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.packages import Context, weight_key
from convert.weights.compress import NONE

RECIPE = """
name = "toy"
[source]
path = "toy"
[matrix]
attention = ["original", "split_einsum"]
bits = ["16", "6"]
resolution = ["128x128", "256x320"]
"""


@pytest.fixture(scope="module")
def plan(toy: Path) -> Plan:
    return make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))


def test_the_plan_counts_as_many_weight_files_as_the_cache_keeps(plan: Plan) -> None:
    context = Context(plan.checkpoint, {}, None, None, None, Path())
    keys = {job: weight_key(context, job) for job in plan.jobs}
    files = plan.weight_files()
    assert len(files) < len(plan.jobs)
    assert {keys[job] for job in files} == {*keys.values()}
    assert len({keys[job] for job in files}) == len(files)


def test_how_bits_are_spelled_makes_no_other_file(plan: Plan) -> None:
    job = next(job for job in plan.jobs if job.compression.methods)
    assert replace(job, bits="another").weights == job.weights
    assert replace(job, deployment="macOS15").weights != job.weights
    plain = replace(job, compression=NONE)
    assert replace(plain, deployment="macOS15").weights == plain.weights
