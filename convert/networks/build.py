"""Component → network: what each network needs from the checkpoint, gathered in one place.

The table of components names the function: so a new one has no place of its own here.
"""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import coremltools as ct
import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.graph import Input, Network
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
    options: dict[str, Any] = {}
    if spec.has_attention:
        assert attention is not None, f"{component} depends on the attention"
        options["attention"] = attention
    builder: Callable[..., Network] = resolve_name(f"{__package__}.{spec.network}")
    return builder(
        checkpoint.config(component),
        tensors,
        inputs={name: Input(shape, given) for name, shape in shapes.items()},
        dtype=computed,
        target=getattr(ct.target, deployment),
        compression=compression,
        **options,
    )
