"""Configs that follow from shapes: SDXL's own, those of cut-down relatives, and what has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from convert.checkpoint.configs import CLIPConfig, UNetConfig, VAEConfig
from convert.errors import InputError
from convert.known.documents import SDXLKind, known_config
from convert.known.fitted import fitted_text_encoder, fitted_unet, fitted_vae

Shapes = dict[str, tuple[int, ...]]
HERE = Path("model.safetensors")
# The settings of the models' own config.json files that differ from SDXL base's.
RELATIVES: dict[str, dict[str, Any]] = {
    "SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "Segmind-Vega": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 2],
    },
    "KOALA-1B": {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "inpainting": {"in_channels": 9},
}


def unet_shapes(config: dict[str, Any]) -> Shapes:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_sdxls_shapes_give_its_own_config(kind: SDXLKind) -> None:
    known = known_config("unet", kind)
    ids = 5 if kind == "refiner" else 6
    shapes = unet_shapes(known)
    assert fitted_unet(shapes, known, HERE, projection=1280, time_ids=ids) == known
    # and nothing of it is taken from the template where the widths are others
    other = {**known, "block_out_channels": [1], "attention_head_dim": 7, "norm_num_groups": 7}
    found = fitted_unet(shapes, other, HERE, projection=1280, time_ids=ids)
    wanted = UNetConfig.parse(known, HERE, 1280)
    parsed = UNetConfig.parse(found, HERE, 1280)
    attended = [i for i, kind in enumerate(wanted.down_blocks) if kind.startswith("Cross")]
    assert [parsed.heads[i] for i in attended] == [wanted.heads[i] for i in attended]
    assert parsed.groups == 32


@pytest.mark.parametrize("name", RELATIVES)
def test_cut_down_relatives_are_told_by_their_shapes(name: str) -> None:
    known = known_config("unet", "base")
    theirs = {**known, **RELATIVES[name]}
    found = fitted_unet(unet_shapes(theirs), known, HERE, projection=1280, time_ids=6)
    assert UNetConfig.parse(found, HERE, 1280) == UNetConfig.parse(theirs, HERE, 1280)


def test_a_unet_without_a_middle_is_refused() -> None:
    shapes = unet_shapes(known_config("unet", "base"))
    shapes = {name: s for name, s in shapes.items() if not name.startswith("mid_block.")}
    with pytest.raises(InputError, match="KOALA-700M"):
        fitted_unet(shapes, known_config("unet", "base"), HERE, projection=1280, time_ids=6)


def test_widths_that_are_no_multiple_of_a_head_are_refused() -> None:
    known = known_config("unet", "base")
    config = {**known, "block_out_channels": [32, 96, 96], "attention_head_dim": [1, 3, 3]}
    shapes = unet_shapes(config)
    with pytest.raises(InputError, match="96 channels wide, which is no multiple of 64"):
        fitted_unet(shapes, known, HERE, projection=1280, time_ids=6)


def test_a_text_encoder_that_does_not_fit_is_refused() -> None:
    known = known_config("unet", "base")
    with pytest.raises(InputError, match="text encoder 2 gives 1281"):
        fitted_unet(unet_shapes(known), known, HERE, projection=1281, time_ids=6)


def test_vae_and_text_encoders_give_their_own_configs() -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vae, text = known_config("vae", "base"), known_config("text_encoder_2", "base")
    with torch.device("meta"):
        models = AutoencoderKL(**vae), CLIPTextModelWithProjection(CLIPTextConfig(**text))
    shapes = [{n: tuple(t.shape) for n, t in model.state_dict().items()} for model in models]
    assert fitted_vae(shapes[0], vae, HERE) == vae
    VAEConfig.parse(fitted_vae(shapes[0], vae, HERE), HERE)
    own = {name.removeprefix("text_model."): shape for name, shape in shapes[1].items()}
    assert fitted_text_encoder(own, text, HERE) == text
    small = fitted_text_encoder(own, {**known_config("text_encoder", "base")}, HERE)
    assert CLIPConfig.parse(small, HERE, projected=True).heads == 20
