"""What LoRA files call modules: a table without two meanings, of full-size checkpoints too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.known.documents import SDXLKind, known_config
from convert.lora.names import NamedModule, module_names, modules
from convert.opening.door import open_checkpoint
from tests.support.loras import SPELLINGS, sgm


def full_size(base: Checkpoint, kind: SDXLKind) -> Checkpoint:
    """The UNet of SDXL itself, with names and without values."""
    import torch
    from diffusers import UNet2DConditionModel

    config = known_config("unet", kind)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    tensors = {
        name: SimpleNamespace(shape=tuple(value.shape)) for name, value in unet.state_dict().items()
    }
    part = Part("unet", base.path / "unet", config, tensors)
    width = config["projection_class_embeddings_input_dim"] - 256 * (5 if kind == "refiner" else 6)
    text = base.parts["text_encoder_2"]
    text = replace(text, config={**text.config, "projection_dim": width})
    return replace(base, parts={"unet": part, "text_encoder_2": text})


@pytest.mark.parametrize(("kind", "count"), [("base", 1050), ("refiner", 742)])
def test_names_of_full_size_are_of_one_module_each(
    base: Checkpoint, kind: SDXLKind, count: int
) -> None:
    checkpoint = full_size(base, kind)
    names = module_names(checkpoint)
    mine = modules(checkpoint, "unet")
    assert len(mine) == count
    kohya = {n: m for n, m in names.items() if n.startswith("lora_unet_")}
    by_module = {module: sum(m == module for m in kohya.values()) for module in kohya.values()}
    assert by_module == {NamedModule("unet", name): 2 for name in mine}


def test_every_spelling_of_every_module_is_known(base: Checkpoint) -> None:
    names = module_names(base)
    for module in modules(base, "unet"):
        for spelling, name in SPELLINGS.items():
            assert names[name(module)] == NamedModule("unet", module), (spelling, module)
    assert sgm("down_blocks.1.resnets.0.conv1") == "input_blocks.4.0.in_layers.2"
    assert sgm("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"


def test_the_first_text_encoder_of_a_refiner_is_its_only_one(
    base: Checkpoint, shapes: Mapping[str, Path]
) -> None:
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    module = "encoder.layers.0.mlp.fc1"
    assert module_names(base)[name] == NamedModule("text_encoder", module)
    refiner = open_checkpoint(shapes["refiner"])
    assert module_names(refiner)[name] == NamedModule("text_encoder_2", module)
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1" not in module_names(refiner)
