"""Level conversion: every mistake a converter can make fails, in the right component."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from tests.support.checkpoints import edit_checkpoint, write_component
from tests.support.packages import edit_model, edit_weights, failing, json_of, operations
from verify.question import Evidence, Question
from verify.reference.recording import Recording
from verify.reference.schedule import TIMESTEPS
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def swap_heads(weights: dict[str, torch.Tensor]) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    first, second, *rest = weights[name].chunk(4)
    weights[name] = torch.cat([second, first, *rest])


def drop_bias(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights[name].zero_()


def transpose_kernel(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.update({name: weights[name].transpose(2, 3)})


WRONG_WEIGHTS = {
    "swapped heads": ("unet", swap_heads),
    "dropped bias": ("unet", drop_bias("time_embedding.linear_2.bias")),
    "transposed kernel": ("unet", transpose_kernel("up_blocks.0.resnets.0.conv1.weight")),
    "dropped bias, text": ("text_encoder", drop_bias("encoder.layers.0.self_attn.v_proj.bias")),
    "transposed kernel, VAE": ("vae_decoder", transpose_kernel("decoder.conv_in.weight")),
    "dropped bias, VAE": ("vae_encoder", drop_bias("encoder.mid_block.resnets.0.conv1.bias")),
}
WRONG_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong epsilon": ("unet", {"norm_eps": 1e-1}),
    "wrong activation": ("unet", {"act_fn": "gelu"}),
    "shifted time embedding": ("unet", {"freq_shift": 1}),
    "sine and cosine exchanged": ("unet", {"flip_sin_to_cos": False}),
    "wrong activation, text": ("text_encoder", {"hidden_act": "gelu"}),
    "wrong epsilon, text": ("text_encoder_2", {"layer_norm_eps": 1e-1}),
    "wrong end of text": ("text_encoder_2", {"eos_token_id": 1}),
    "wrong groups, VAE": ("vae_decoder", {"norm_num_groups": 4}),
}


@pytest.mark.parametrize("mistake", WRONG_WEIGHTS)
def test_a_mistake_in_the_weights_fails(
    mistake: str, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    component, change = WRONG_WEIGHTS[mistake]
    part = "vae" if component.startswith("vae") else component
    wrong = edit_checkpoint(base, tmp_path, part, change)
    path = write_component(tmp_path / "a.mlpackage", wrong, component)
    results = verify(path, Evidence(base, recording=recording), Question(runtime="torch"))
    assert results.verdict == "fail"
    assert {(c.component, c.level) for c in results.failures} == {(component, "conversion")}


@pytest.mark.parametrize("mistake", WRONG_NETWORKS)
def test_a_mistake_in_the_network_fails(
    mistake: str, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    component, config = WRONG_NETWORKS[mistake]
    part = "vae" if component.startswith("vae") else component
    wrong = edit_checkpoint(base, tmp_path, part, config=config)
    path = write_component(tmp_path / "a.mlpackage", wrong, component)
    results = verify(path, Evidence(base, recording=recording), Question(runtime="torch"))
    assert {(c.component, c.level) for c in results.failures} == {(component, "conversion")}


def unscale(model: Any) -> None:
    """Turn the factor of one attention's weights into 1."""
    ops = operations(model)
    scale = next(op for op in ops if op.type == "mul" and "attn1" in op.outputs[0].name)
    name = scale.inputs["y"].arguments[0].name
    const = next(op for op in ops if op.type == "const" and op.outputs[0].name == name)
    tensor = const.attributes["val"].immediateValue.tensor
    tensor.bytes.values = np.float16(1).tobytes()


def test_unscaled_attention_fails(base: Checkpoint, recording: Recording, tmp_path: Path) -> None:
    path = write_component(tmp_path / "a.mlpackage", base, "unet")
    edit_model(path, unscale)
    assert any(
        case.startswith("unet/t=")
        for case in failing(
            verify(path, Evidence(base, recording=recording), Question(runtime="torch"))
        )
    )


def test_not_a_number_fails_and_is_found(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    path = write_component(tmp_path / "a.mlpackage", base, "unet")
    edit_weights(path, lambda data: data[128:130].view(np.float16).fill(math.nan))
    results = verify(path, Evidence(base, recording=recording), Question(runtime="torch"))
    assert "unet/weights" in failing(results)
    bad = [c for c in results.failures if c.level == "conversion"]
    assert len(bad) == 2 * len(TIMESTEPS)
    assert all(c.metrics and not c.metrics.finite and "nan" in c.message for c in bad)
    assert json_of(results)["verdict"] == "fail"
