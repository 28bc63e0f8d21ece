"""Component → network: what each network needs from the checkpoint, gathered in one place."""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.configs import VAEConfig
from convert.networks.clip import text_encoder
from convert.networks.graph import Network
from convert.networks.unet import unet
from convert.networks.vae import vae_decoder, vae_encoder
from convert.weights.compress import NONE, Compression


def build_network(
    checkpoint: Checkpoint,
    component: str,
    *,
    image_size: tuple[int, int],
    attention: str,
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """The network of one component of the checkpoint.

    Args:
        image_size: (height, width) in pixels; text encoders do not depend on it.
        attention: of the UNet; other components do not depend on it.
        dtype: of weights and activations.
        target: coremltools' opset version.
        compression: of the weights.

    Raises:
        InputError: the checkpoint lacks the component, or does not fit its config or the size.
    """
    part = checkpoint.part(component)
    where = part.path / "config.json"
    tensors = checkpoint.component_tensors(component)
    common: dict[str, Any] = {"dtype": dtype, "target": target, "compression": compression}
    if component == "unet":
        vae = checkpoint.part("vae_decoder")
        return unet(
            part.config,
            where,
            tensors,
            text_embed_dim=checkpoint.text_embed_dim,
            latent_size=VAEConfig.parse(vae.config, vae.path / "config.json").latent_size(
                image_size
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
