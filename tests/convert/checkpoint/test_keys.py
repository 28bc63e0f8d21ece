"""The tables of names agree with diffusers' own converters, for every tensor, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from convert.checkpoint.keys import KeyMap, UNetBlocks, openclip_keys, unet_keys, vae_keys
from convert.known.documents import SDXLKind, known_config
from tests.support.checkpoints import SHAPES, UNET

COUNTS = {"base": (1680, 2_567_463_684), "refiner": (1220, 2_259_526_660)}


@cache
def shapes(part: str, kind: SDXLKind) -> dict[str, torch.Tensor]:
    """A full-size network's tensors, without memory."""
    return on_meta(part, known_config(part, kind))


def on_meta(part: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part](**config)
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_sdxls_known_configs_have_the_tensors_of_its_releases(kind: SDXLKind) -> None:
    unet = shapes("unet", kind)
    assert (len(unet), sum(t.numel() for t in unet.values())) == COUNTS[kind]
    vae = shapes("vae", kind)
    assert (len(vae), sum(t.numel() for t in vae.values())) == (248, 83_653_863)


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_a_unets_names_are_those_that_diffusers_converts(kind: SDXLKind) -> None:
    config = known_config("unet", kind)
    blocks = UNetBlocks(
        (2,) * len(config["block_out_channels"]),
        tuple(name.startswith("CrossAttn") for name in config["up_block_types"]),
    )
    require_as_diffusers_converts(unet_keys(blocks), shapes("unet", kind), config)


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"no_mid_attention"}))
def test_so_are_those_of_tiny_unets(shape: str) -> None:
    extra = {"cross_attention_dim": 64, "projection_class_embeddings_input_dim": 64}
    config = {**UNET, **extra, **SHAPES[shape].get("unet", {})}
    layers = (config["layers_per_block"],) * len(config["block_out_channels"])
    blocks = UNetBlocks(layers, tuple(n.startswith("CrossAttn") for n in config["up_block_types"]))
    require_as_diffusers_converts(unet_keys(blocks), on_meta("unet", config), config)


def require_as_diffusers_converts(
    keys: KeyMap, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ours = {f"model.diffusion_model.{keys.ldm(name)}": name for name in tensors}
    assert len(ours) == len(tensors)
    assert convert_ldm_unet_checkpoint(dict(ours), config) == {n: n for n in tensors}
    bare = {ldm.removeprefix("model.diffusion_model."): name for ldm, name in ours.items()}
    assert {ldm: keys.diffusers(ldm) for ldm in bare} == bare
    assert unet_keys(UNetBlocks.of_ldm(bare)).pairs == keys.pairs


def test_a_vaes_names_are_those_that_diffusers_converts() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    keys, config = vae_keys(4, 2), known_config("vae", "base")
    given = {f"first_stage_model.{keys.ldm(n)}": t for n, t in shapes("vae", "base").items()}
    assert len(given) == 248
    found = convert_ldm_vae_checkpoint(dict(given), config)
    for ldm, tensor in given.items():
        name = keys.diffusers(ldm.removeprefix("first_stage_model."))
        assert name is not None
        assert found[name] is tensor
    assert len(found) == len(given)


@pytest.mark.parametrize("layer", [0, 31])
def test_text_encoder_2s_names_are_those_that_diffusers_converts(layer: int) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    keys, prefix = openclip_keys(32), "conditioner.embedders.1.model."
    block = f"encoder.layers.{layer}"
    names = [
        "embeddings.token_embedding.weight",
        "embeddings.position_embedding.weight",
        "final_layer_norm.bias",
        *(f"{block}.{n}.weight" for n in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")),
        f"{block}.self_attn.out_proj.bias",
    ]
    given = {f"{prefix}{keys.ldm(name)}": torch.empty(1) for name in names}
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=1))
    found = convert_open_clip_checkpoint(model, given, prefix)
    assert sorted(found) == sorted(f"text_model.{name}" for name in names)
    for name in names:
        assert found[f"text_model.{name}"] is given[f"{prefix}{keys.ldm(name)}"]


@pytest.mark.parametrize(
    "name", ["input_blocks.40.0.in_layers.0.weight", "nothing", "time_embed.1.weight", "out.1.bias"]
)
def test_a_name_without_a_place_has_no_other(name: str) -> None:
    assert unet_keys(UNetBlocks((2, 2, 2), (True, True, False))).diffusers(name) is None


@pytest.mark.parametrize(
    "lost",
    ["input_blocks.2.", "output_blocks.8.", "input_blocks.3.", "output_blocks.0."],
)
def test_blocks_that_are_missing_are_noticed(lost: str) -> None:
    keys = unet_keys(UNetBlocks((2, 2, 2), (True, True, False)))
    names = [f"{ldm}.weight" for _, ldm in keys.pairs if not ldm.startswith(lost)]
    with pytest.raises(ValueError, match="output blocks"):
        UNetBlocks.of_ldm(names)


@pytest.mark.parametrize(
    ("attention", "places"),
    [
        ((True, True, False), ["2.2.conv", "5.2.conv"]),  # SDXL base
        ((False, True, True, False), ["2.1.conv", "5.2.conv", "8.2.conv"]),  # its refiner
    ],
)
def test_an_upsampler_follows_an_attention_if_there_is_one(
    attention: tuple[bool, ...], places: list[str]
) -> None:
    # diffusers' converter takes it at either place, so the places stand here; sgm's UNet has them.
    keys = unet_keys(UNetBlocks((2,) * len(attention), attention))
    found = [keys.ldm(f"up_blocks.{n}.upsamplers.0.conv.weight") for n in range(len(places))]
    assert found == [f"output_blocks.{place}.weight" for place in places]
