"""What makes two packages' weight files one, and tensors of any kind in them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.files.cache import Cache
from convert.opening.door import open_checkpoint
from convert.plan.plan import Job, Plan, make_plan
from convert.process.progress import Silent
from convert.recipe.recipe import parse_recipe
from convert.run.packages import Context, task_for
from convert.run.run import checkpoint_digests, run
from convert.source.download import Snapshot
from convert.weights.compress import NONE
from tests.support.checkpoints import edit_checkpoint
from tests.support.tensors import Sum

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
    context = Context(
        plan.checkpoint, dict.fromkeys(plan.checkpoint.files, "0"), None, None, None, Path()
    )
    keys = {j: task_for(context, j, plan.weights[j.component]).weight_key for j in plan.jobs}
    files = plan.weight_files
    assert len(files) < len(plan.jobs)
    assert {keys[job] for job in files} == {*keys.values()}
    assert len({keys[job] for job in files}) == len(files)


def test_how_bits_are_spelled_makes_no_other_file(plan: Plan) -> None:
    job = next(job for job in plan.jobs if job.compression.methods)
    assert replace(job, bits="another").weights == job.weights
    assert replace(job, deployment="macOS15").weights != job.weights
    plain = replace(job, compression=NONE)
    assert replace(plain, deployment="macOS15").weights == plain.weights


# ---- a tensor that no file holds ----

ENCODER, SUMMED = "text_encoder_2", "encoder.layers.0.mlp.fc1.weight"
ADDED = "encoder.layers.1.mlp.fc1.weight"  # of the same shape


def with_sum(checkpoint: Checkpoint, added: str = ADDED) -> Checkpoint:
    """The checkpoint with the sum of two of its tensors for the first."""
    part = checkpoint.parts[ENCODER]
    total = Sum(part.tensors[SUMMED], part.tensors[added], part.tensors[SUMMED].shape)
    changed = replace(part, tensors={**part.tensors, SUMMED: total})
    return replace(checkpoint, parts={**checkpoint.parts, ENCODER: changed})


def plan_of(checkpoint: Checkpoint) -> Plan:
    recipe = parse_recipe(RECIPE.replace(', "split_einsum"', ""), where="test")
    return make_plan(recipe, checkpoint, components=[ENCODER])


def keys_of(checkpoint: Checkpoint, folder: Path) -> dict[Job, str]:
    plan, source = plan_of(checkpoint), Snapshot(checkpoint.path, None, None, ())
    with Cache(folder / "cache") as cache:
        digests = checkpoint_digests(plan, source, cache, Silent())
    context = Context(checkpoint, digests, None, None, None, Path())
    keys = {j: task_for(context, j, plan.weights[j.component]).key for j in plan.jobs}
    assert len({*keys.values()}) == len(keys)
    return keys


def test_a_computed_tensor_is_converted_as_if_a_file_held_it(
    base: Checkpoint, tmp_path: Path
) -> None:
    """Plain and palettized, in workers: they make the same bytes of the same values."""

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights[SUMMED] = weights[SUMMED].float() + weights[ADDED].float()

    weights = {}
    stored, computed = edit_checkpoint(base, tmp_path, ENCODER, add), with_sum(base)
    for name, source in (("plain", base), ("stored", stored), ("computed", computed)):
        out = tmp_path / name
        run(plan_of(source), Snapshot(source.path, None, None, ()), out, jobs=2)
        files = sorted(file for file in out.glob("*/*/Data/**/weight.bin"))
        weights[name] = {file.parents[4].name.split("_")[2]: file.read_bytes() for file in files}
    assert len(weights["stored"]) == 2
    assert weights["computed"] == weights["stored"]
    assert all(weights["plain"][bits] != of for bits, of in weights["stored"].items())


def test_what_a_computed_tensor_is_made_of_tells_packages_apart(
    base: Checkpoint, tmp_path: Path
) -> None:
    plain = keys_of(base, tmp_path)
    one = keys_of(with_sum(base), tmp_path)
    other = keys_of(with_sum(base, "encoder.layers.2.mlp.fc1.weight"), tmp_path)
    assert plain.keys() == one.keys() == other.keys()
    for job in plain:
        assert len({plain[job], one[job], other[job]}) == 3
    moved = open_checkpoint(Path(shutil.copytree(base.path, tmp_path / base.name)))
    assert keys_of(with_sum(moved), tmp_path) == one


def test_files_of_other_parts_are_hashed_if_a_tensor_needs_them(
    base: Checkpoint, tmp_path: Path
) -> None:
    part, bias = base.parts[ENCODER], base.parts["unet"].tensors["conv_out.bias"]
    changed = replace(part, tensors={**part.tensors, "extra": bias})

    def hashed(checkpoint: Checkpoint) -> set[str]:
        source = Snapshot(base.path, None, None, ())
        with Cache(tmp_path / "cache") as cache:
            return {*checkpoint_digests(plan_of(checkpoint), source, cache, Silent())}

    (file,) = {name for name, path in base.files.items() if (path,) == bias.files}
    more = hashed(replace(base, parts={**base.parts, ENCODER: changed}))
    assert more - hashed(base) == {file}


def test_a_computed_value_that_is_not_finite_is_named(base: Checkpoint, tmp_path: Path) -> None:
    def raise_(weights: dict[str, torch.Tensor]) -> None:
        for name in (SUMMED, ADDED):
            weights[name][3, 1] = 60000.0

    wide = with_sum(edit_checkpoint(base, tmp_path, ENCODER, raise_))
    with pytest.raises(InputError, match=r"fc1.weight`\[3, 1\] is 120000.0, which overflows"):
        run(plan_of(wide), Snapshot(wide.path, None, None, ()), tmp_path / "out", jobs=1)
