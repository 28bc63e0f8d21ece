"""Our graphs are Apple's op for op, apart from the listed deviations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.build import build_network
from convert.networks.deviations import DEVIATIONS, expected_ops
from convert.opening.door import open_checkpoint
from convert.toy.random_checkpoint import Configs, write_checkpoint
from convert.values import Resolution

APPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "apple_graphs.json").read_text("utf-8")
)
TEXT = {
    "vocab_size": 1000,
    "bos_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "eos_token_id": 2,
}
CONFIGS = Configs(
    unet=APPLE["unet_config"],
    vae={
        "block_out_channels": [32, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
    },
    text_encoder={**TEXT, "hidden_act": "quick_gelu"},
    text_encoder_2={**TEXT, "hidden_act": "gelu"},
)
CASES = [
    ("text_encoder", None),
    ("text_encoder_2", None),
    ("unet", "original"),
    ("unet", "split_einsum"),
    ("unet", "split_einsum_v2"),
    ("vae_decoder", None),
    ("vae_encoder", None),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("apple") / "tiny"
    write_checkpoint(folder, CONFIGS, words=["an"])
    return open_checkpoint(folder)


@pytest.mark.parametrize(("component", "attention"), CASES)
def test_op_histograms_and_interfaces_are_apples(
    checkpoint: Checkpoint, component: str, attention: str | None
) -> None:
    key = component if attention is None else f"{component}/{attention}"
    apple = APPLE["interfaces"][key]
    # Apple's split_einsum_v2 needs 512 to divide the latent's area, so that graph is a larger one.
    sample = apple["inputs"][0]["shape"]
    scale = 1 if component == "vae_encoder" else 8
    size = Resolution(sample[3] * scale, sample[2] * scale) if len(sample) == 4 else None
    network = build_network(
        checkpoint,
        component,
        resolution=size,
        attention=attention or "original",
        dtype=np.float32 if component.startswith("vae") else np.float16,
        deployment="macOS14",
    )
    function = network.program.functions["main"]
    ops = Counter(op.op_type for op in function.operations)
    del ops["const"]
    assert ops == expected_ops(component, APPLE["ops"][key])
    assert [(n, list(v.shape)) for n, v in function.inputs.items()] == [
        (i["name"], i["shape"]) for i in apple["inputs"]
    ]
    ours = {v.name: list(v.shape) for v in function.outputs}
    assert ours == {o["name"]: o["shape"] for o in apple["outputs"]}
    assert set(ours) == set(COMPONENTS[component].outputs)


def test_every_deviation_says_why() -> None:
    assert all(len(d.what) > 20 and len(d.why) > 20 for d in DEVIATIONS)
