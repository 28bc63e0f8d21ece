"""The toy's networks: SDXL's structure at about a thousandth of its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

SCALING_FACTOR = 0.13025  # SDXL's, which Core ML apps assume whatever the config says

VAE: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [16, 32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,  # four channels each, as in SDXL's first blocks
    "scaling_factor": SCALING_FACTOR,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
    "max_position_embeddings": 77,
    "eos_token_id": 2,  # as SDXL's own configs say; it means the highest token id
}
TEXT_ENCODER_2: dict[str, Any] = {
    **TEXT_ENCODER,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "projection_dim": 96,
}
UNET: dict[str, Any] = {
    "sample_size": 16,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 6 * 16 + TEXT_ENCODER_2["projection_dim"],
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2, 2],  # diffusers' name for the number of heads
    "transformer_layers_per_block": [1, 1, 2],
    "layers_per_block": 2,
    "norm_num_groups": 16,
    "cross_attention_dim": TEXT_ENCODER["hidden_size"] + TEXT_ENCODER_2["hidden_size"],
    "use_linear_projection": True,
}


def make_autoencoder() -> AutoencoderKL:
    """The VAE, its weights random."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def make_unet() -> UNet2DConditionModel:
    """The UNet, its weights random."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def make_text_encoders(vocab_size: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders, their weights random."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(settings: Mapping[str, Any]) -> CLIPTextConfig:
        return CLIPTextConfig(vocab_size=vocab_size, bos_token_id=vocab_size - 2, **settings)

    return (
        CLIPTextModel(config(TEXT_ENCODER)),
        CLIPTextModelWithProjection(config(TEXT_ENCODER_2)),
    )
