"""Component → network: what each network needs from the checkpoint, gathered in one place."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.networks.clip import text_encoder
from convert.networks.graph import Network
from convert.networks.unet import unet
from convert.networks.vae import vae_decoder, vae_encoder
from convert.values import DeploymentTarget, Resolution
from convert.weights.compress import NONE, Compression


def build_network(
    checkpoint: Checkpoint,
    component: str,
    *,
    resolution: Resolution | None,
    attention: str | None,
    dtype: np.dtype | type | str,
    deployment: DeploymentTarget,
    compression: Compression = NONE,
) -> Network:
    """The network of one component of the checkpoint.

    Args:
        resolution: of the image; text encoders do not depend on it.
        attention: of the UNet; other components do not depend on it.
        dtype: of weights and activations.
        deployment: the oldest system that it is for, which says the opset.
        compression: of the weights.

    Raises:
        InputError: the checkpoint lacks the component, or does not fit its config or the size.
    """
    tensors = checkpoint.component_tensors(component)
    common: dict[str, Any] = {
        "dtype": np.dtype(dtype),
        "target": getattr(ct.target, deployment),
        "compression": compression,
    }
    if component in checkpoint.text_encoders:
        return text_encoder(checkpoint.text_encoders[component], tensors, **common)
    assert resolution is not None, f"{component} depends on the resolution"
    if component == "vae_decoder":
        return vae_decoder(checkpoint.vae, tensors, resolution=resolution, **common)
    if component == "vae_encoder":
        return vae_encoder(checkpoint.vae, tensors, resolution=resolution, **common)
    assert attention is not None, f"{component} depends on the attention"
    latent_size = checkpoint.vae.latent_size(resolution)
    return unet(checkpoint.unet, tensors, latent_size=latent_size, attention=attention, **common)
