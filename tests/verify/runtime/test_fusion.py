"""Attention in one step: where it may be, it is, and the values stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb

from convert.checkpoint.checkpoint import Checkpoint
from tests.support.checkpoints import write_component
from verify.judge.metrics import compare
from verify.mil import load_program
from verify.runtime.evaluator import Evaluator
from verify.runtime.fusion import fuse_attention
from verify.runtime.plan import make_plan

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 3, 8, 16)  # [B, heads, channels, positions]


def types(evaluator: Evaluator, *, fused: bool) -> list[str]:
    """The types of what runs; an attention in one step counts as what it ends in."""
    steps, _ = make_plan(evaluator.program, evaluator._constants)
    if fused:
        steps = fuse_attention(steps, evaluator.program, evaluator._constants)
    return [step.op.type for step in steps]


@pytest.mark.parametrize(
    ("attention", "size"),
    [("original", (64, 96)), ("split_einsum", (64, 96)), ("split_einsum_v2", (256, 192))],
)
def test_every_attention_of_a_unet_is_one_step(
    attention: str, size: tuple[int, int], base: Checkpoint, tmp_path: Path
) -> None:
    package = write_component(
        tmp_path / "a.mlpackage", base, "unet", attention=attention, size=size
    )
    evaluator = Evaluator(package, mode="fp32")
    before, after = (types(evaluator, fused=fused) for fused in (False, True))
    count = before.count("softmax")
    assert count >= 10
    assert after.count("softmax") == 0
    assert len(before) - len(after) == 3 * count
    generator = np.random.default_rng(0)
    inputs = {
        f.name: generator.standard_normal(f.shape).astype(np.float16)
        for f in evaluator.program.inputs
    }
    inputs["timestep"][:] = 500
    whole = evaluator.run(inputs)["noise_pred"]
    (softmax, *_) = (op for op in evaluator.program.ops if op.type == "softmax")
    kept = evaluator.run(inputs, keep=[softmax.outputs[0][0]])
    assert softmax.outputs[0][0] in kept
    assert compare(kept["noise_pred"], whole).snr_db > 100


def program(tmp_path: Path, *, scale: object = 0.25, axis: int = -1, twice: bool = False) -> Path:
    """One attention of matmuls, from inputs q, k and v."""

    @mb.program(input_specs=[mb.TensorSpec(SHAPE) for _ in range(3)], opset_version=ct.target.iOS16)
    def attention(q: Any, k: Any, v: Any) -> Any:
        logits = mb.matmul(x=q, y=k, transpose_x=True)
        weights = mb.softmax(x=mb.mul(x=logits, y=scale), axis=axis, name="weights")
        out = mb.matmul(x=v, y=weights, transpose_y=True, name="out")
        return (out, weights) if twice else out

    path = tmp_path / "attention.mlpackage"
    ct.convert(
        attention,
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
        pass_pipeline=ct.PassPipeline.DEFAULT,
        skip_model_load=True,
    ).save(str(path))
    return path


def chains(package: Path) -> int:
    """How many attentions are found."""
    evaluator = Evaluator(package, mode="fp32")
    return types(evaluator, fused=False).count("softmax") - types(evaluator, fused=True).count(
        "softmax"
    )


def test_a_chain_is_its_formula(tmp_path: Path) -> None:
    package = program(tmp_path)
    assert chains(package) == 1
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    names = [f.name for f in load_program(package).inputs]
    found = Evaluator(package, mode="fp32").run(dict(zip(names, (q, k, v), strict=True)))
    expected = v @ (0.25 * q.mT @ k).softmax(-1).mT
    assert compare(expected, next(iter(found.values()))).snr_db > 100


@pytest.mark.parametrize(
    "change",
    [{"axis": 2}, {"twice": True}, {"scale": np.full((1, 3, 1, 1), 0.25, np.float32)}],
    ids=str,
)
def test_what_is_no_attention_or_needed_elsewhere_stays(
    change: dict[str, object], tmp_path: Path
) -> None:
    assert chains(program(tmp_path, **change)) == 0  # type: ignore[arg-type]


def test_declared_types_are_rounded_op_by_op(base_artifact: Path) -> None:
    evaluator = Evaluator(base_artifact / "Unet.mlpackage", mode="typed")
    assert evaluator._fused is evaluator._plan
