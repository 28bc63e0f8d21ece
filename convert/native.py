"""The native engine: a job → a package, written from the mapped checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np

from convert.cache import Cache, key_of
from convert.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.mlpackage import WEIGHTS, Description, assemble, serialise
from convert.models.networks import build_network
from convert.plan import Job
from convert.progress import Advance
from convert.values import FORMATS
from convert.weight_file import Layout, layout, write


def convert_job(
    checkpoint: Checkpoint,
    job: Job,
    about: Mapping[str, Any],
    digests: Mapping[str, str],
    package: Path,
    cache: Cache,
    advance: Advance,
) -> dict[str, str]:
    """Make the package of one job; returns the SHA-256 of its weight file, by path in it.

    Args:
        about: what the model says of itself; `Description` without the descriptions of its
            inputs and outputs.
        digests: SHA-256 of the checkpoint's files, by path in it.
        package: where it goes; its weight file is linked to the cache's.
        cache: keeps weight files, which jobs that differ in graph alone share.
        advance: is told the bytes of weights written.

    Raises:
        InputError: the checkpoint does not fit its config, or holds a number that is not finite.
    """
    component = COMPONENTS[job.component]
    resolution = job.resolution
    network = build_network(
        checkpoint,
        job.component,
        image_size=(resolution.height, resolution.width) if resolution else (0, 0),
        attention=job.attention or "original",
        dtype=np.dtype(job.precision),
        target=getattr(ct.target, job.deployment),
    )
    plan = layout(network.blobs.values())
    description = Description(**about, inputs=component.inputs, outputs=component.outputs)
    model = serialise(network, plan, description, format=FORMATS[job.deployment])

    key = key_of(_content(plan, checkpoint, digests))
    if cache.has("weights", key):
        advance(plan.size)

    def fill(folder: Path) -> dict[str, str]:
        return {"sha256": write(folder / "weight.bin", plan, advance)}

    folder, facts = cache.entry("weights", key, fill)
    assemble(package, model, folder / "weight.bin")
    return {str(WEIGHTS): facts["sha256"]}


def _content(plan: Layout, checkpoint: Checkpoint, digests: Mapping[str, str]) -> list[Any]:
    """What determines the bytes of a weight file: its layout, and where its values come from."""
    names = {path.resolve(): name for name, path in checkpoint.files.items()}
    return [
        [
            blob.name,
            blob.dtype.str,
            blob.shape,
            [digests[names[blob.tensor.path.resolve()]], blob.tensor.offset, blob.tensor.dtype]
            if blob.tensor
            else b"".join(chunk.tobytes() for chunk in blob.chunks()).hex(),
        ]
        for blob in plan.blobs
    ]
