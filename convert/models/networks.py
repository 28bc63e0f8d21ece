"""Component → network: what each network needs from the checkpoint, gathered in one place."""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.components import belongs
from convert.errors import InputError
from convert.models.clip import text_encoder
from convert.models.graph import Network
from convert.models.unet import unet
from convert.models.vae import VAEConfig, latent_size, vae_decoder, vae_encoder
from convert.tensors import Tensor


def build_network(
    checkpoint: Checkpoint,
    component: str,
    *,
    image_size: tuple[int, int],
    attention: str,
    dtype: np.dtype | type,
    target: Any,
) -> Network:
    """The network of one component of the checkpoint.

    Args:
        image_size: (height, width) in pixels; text encoders do not depend on it.
        attention: of the UNet; other components do not depend on it.
        dtype: of weights and activations.
        target: coremltools' opset version.

    Raises:
        InputError: the checkpoint lacks the component, or does not fit its config or the size.
    """
    part = checkpoint.part(component)
    where = part.path / "config.json"
    tensors = component_tensors(checkpoint, component)
    common: dict[str, Any] = {"dtype": dtype, "target": target}
    if component == "unet":
        vae = checkpoint.part("vae_decoder")
        return unet(
            part.config,
            where,
            tensors,
            text_embed_dim=text_embed_dim(checkpoint),
            latent_size=latent_size(
                VAEConfig.parse(vae.config, vae.path / "config.json"), image_size
            ),
            attention=attention,
            **common,
        )
    if component == "vae_decoder":
        return vae_decoder(part.config, where, tensors, image_size=image_size, **common)
    if component == "vae_encoder":
        return vae_encoder(part.config, where, tensors, image_size=image_size, **common)
    projected = component == "text_encoder_2"
    return text_encoder(part.config, where, tensors, projected=projected, **common)


def component_tensors(checkpoint: Checkpoint, component: str) -> dict[str, Tensor]:
    """The tensors of one component; raises InputError for a tensor that belongs to none."""
    part = checkpoint.part(component)
    for name, tensor in part.tensors.items():
        if not any(belongs(c, name) for c in checkpoint.components if checkpoint.part(c) is part):
            raise InputError(
                f"tensor `{name}` has no place in the network that the config describes",
                where=tensor.path,
                hint="The weights do not belong to this config.json.",
            )
    return {name: t for name, t in part.tensors.items() if belongs(component, name)}


def text_embed_dim(checkpoint: Checkpoint) -> int:
    """The width of text encoder 2's pooled output, which the UNet's `text_embeds` must have."""
    return int(checkpoint.part("text_encoder_2").config.get("projection_dim", 512))
