"""The native engine: a job → a package, written from the mapped checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.cache import Cache, key_of
from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.build import build_network
from convert.package.mlpackage import WEIGHTS, Description, assemble, serialise
from convert.plan.plan import Job
from convert.progress import Advance
from convert.values import FORMATS
from convert.weights.weight_file import layout, write


def convert_job(
    checkpoint: Checkpoint,
    job: Job,
    about: Mapping[str, Any],
    weights: str,
    package: Path,
    cache: Cache,
    advance: Advance,
) -> dict[str, str]:
    """Make the package of one job; returns the SHA-256 of its weight file, by path in it.

    Args:
        about: what the model says of itself; `Description` without the descriptions of its
            inputs and outputs.
        weights: key of the weight file in the cache, which jobs that differ in graph alone share.
        package: where it goes; its weight file is linked to the cache's.
        cache: keeps the weight files.
        advance: is told the bytes of weights written.

    Raises:
        InputError: the checkpoint does not fit its config, or holds a number that is not finite.
    """
    component = COMPONENTS[job.component]
    network = build_network(
        checkpoint,
        job.component,
        resolution=job.resolution,
        attention=job.attention,
        dtype=job.precision,
        deployment=job.deployment,
        compression=job.compression,
    )
    plan = layout(network.blobs.values())
    description = Description(**about, inputs=component.texts[0], outputs=component.texts[1])
    model = serialise(network, plan, description, format=FORMATS[job.deployment])

    content = key_of([[b.name, b.dtype.str, b.shape, plan.offsets[b.name]] for b in plan.blobs])

    def fill(folder: Path) -> dict[str, str]:
        return {"sha256": write(folder / "weight.bin", plan, advance), "layout": content}

    folder, facts = cache.entry("weights", weights, fill)
    assert facts["layout"] == content, f"{job} arranges its weights in its own way"
    assemble(package, model, folder / "weight.bin")
    return {str(WEIGHTS): facts["sha256"]}
