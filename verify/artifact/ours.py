"""The graph that our converter makes where another program stands, from the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.build import build_network
from convert.networks.graph import Network
from convert.package.mlpackage import Description, serialise
from convert.values import FORMATS, DeploymentTarget, Resolution
from convert.weights.compress import NONE, Compression
from convert.weights.weight_file import layout
from verify.artifact.graph import infer_attention
from verify.artifact.interface import precision
from verify.mil import Program, load_program

# What coremltools writes into packages that it has translated, as it has Apple's.
TRANSLATED = "com.github.apple.coremltools.source_dialect"
DTYPES = {"fp16": np.float16, "fp32": np.float32}


def is_ours(program: Program, checkpoint: Checkpoint, component: str) -> bool:
    """Whether our converter has made a program: its weights have the names that we give them."""
    if TRANSLATED in program.user_defined:
        return False
    names = {name.replace(".", "_") for name in checkpoint.component_tensors(component)}
    given = {name for op in program.ops for name, _ in op.outputs}
    return 2 * len(names & given) >= len(names)


def our_network(
    program: Program,
    checkpoint: Checkpoint,
    component: str,
    resolution: Resolution | None,
    target: DeploymentTarget,
    compression: Compression = NONE,
    *,
    claims: Mapping[str, str] | None = None,
) -> Network:
    """The component's network with the program's attention and precision.

    Args:
        claims: what a manifest says of the program: its `attention` and `vae_precision` are taken
            before what the program looks like.

    Raises:
        InputError: the checkpoint does not fit its config or the size.
    """
    spec, claims = COMPONENTS[component], claims or {}
    dtype: type | str = DTYPES[precision(program)]
    if not spec.is_half:
        dtype = claims.get("vae_precision", dtype)
    attention = claims.get("attention") or infer_attention(program)
    return build_network(
        checkpoint,
        component,
        resolution=resolution,
        attention=attention if spec.has_attention else None,
        dtype=dtype,
        deployment=target,
        compression=compression,
    )


def our_program(network: Network, component: str, target: DeploymentTarget) -> Program:
    """A network as a program; its weight file is nowhere, and only its layout can be told."""
    about = Description("", "", "", "", *COMPONENTS[component].texts)
    model = serialise(network, layout(network.blobs.values()), about, format=FORMATS[target])
    with TemporaryDirectory(prefix="sdxl-coreml-") as folder:
        file = Path(folder) / "model.mlmodel"
        file.write_bytes(model)
        return load_program(file)
