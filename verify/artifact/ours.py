"""The graph that our converter makes where another program stands, from the same checkpoint."""

from __future__ import annotations

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.build import build_network
from convert.networks.graph import Network
from convert.values import DeploymentTarget, Resolution
from convert.weights.compress import NONE, Compression
from verify.artifact.graph import infer_attention
from verify.artifact.interface import precision
from verify.mil import Program

DTYPES = {"fp16": np.float16, "fp32": np.float32}


def our_network(
    program: Program,
    checkpoint: Checkpoint,
    component: str,
    resolution: Resolution | None,
    target: DeploymentTarget,
    compression: Compression = NONE,
) -> Network:
    """The component's network with the program's attention and precision.

    Raises:
        InputError: the checkpoint does not fit its config or the size.
    """
    return build_network(
        checkpoint,
        component,
        resolution=resolution,
        attention=infer_attention(program) if COMPONENTS[component].has_attention else None,
        dtype=DTYPES[precision(program)],
        deployment=target,
        compression=compression,
    )
