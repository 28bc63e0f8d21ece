"""Component → network: what each network needs from the checkpoint, gathered in one place."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.clip import text_encoder
from convert.networks.graph import Input, Network
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
    spec, tensors = COMPONENTS[component], checkpoint.component_tensors(component)
    if spec.has_resolution:
        assert resolution is not None, f"{component} depends on the resolution"
        checkpoint.vae.latent_size(resolution)  # or an error
    shapes, _ = checkpoint.shapes(component, resolution)
    computed = np.dtype(dtype)
    given = np.dtype(np.float32) if spec.input_dtype == "float32" else computed
    common: dict[str, Any] = {
        "inputs": {name: Input(shape, given) for name, shape in shapes.items()},
        "dtype": computed,
        "target": getattr(ct.target, deployment),
        "compression": compression,
    }
    match spec.kind:
        case "text_encoder":
            return text_encoder(checkpoint.text_encoders[component], tensors, **common)
        case "unet":
            assert attention is not None, f"{component} depends on the attention"
            return unet(checkpoint.unet, tensors, attention=attention, **common)
        case "vae_decoder":
            return vae_decoder(checkpoint.vae, tensors, **common)
        case "vae_encoder":
            return vae_encoder(checkpoint.vae, tensors, **common)
