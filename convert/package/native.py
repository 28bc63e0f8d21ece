"""The native engine: a job → a package, written from the mapped checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.networks.build import build_network
from convert.package.mlpackage import WEIGHTS, Description, assemble, serialise
from convert.plan.plan import Job
from convert.process.progress import Advance
from convert.values import FORMATS
from convert.weights.weight_file import layout, write

WeightEntry = Callable[[Callable[[Path], dict[str, str]]], tuple[Path, dict[str, str]]]


def convert_job(
    checkpoint: Checkpoint,
    job: Job,
    description: Description,
    package: Path,
    weights: WeightEntry,
    advance: Advance,
) -> dict[str, str]:
    """Make the package of one job; returns the SHA-256 of its weight file, by path in it.

    Args:
        package: where it goes; its weight file is linked to that of `weights`.
        weights: the folder that keeps the weight file for all jobs that differ in graph alone, and
            what is known of it; filled by the function that it is given if it is not there.
        advance: is told the bytes of weights written.

    Raises:
        InputError: the checkpoint does not fit its config, or holds a number that is not finite.
    """
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

    def fill(folder: Path) -> dict[str, str]:
        return {"sha256": write(folder / "weight.bin", plan, advance), "layout": plan.key}

    folder, facts = weights(fill)
    assert facts["layout"] == plan.key, f"{job} arranges its weights in its own way"
    model = serialise(network, plan, description, format=FORMATS[job.deployment])
    assemble(package, model, folder / "weight.bin")
    return {str(WEIGHTS): facts["sha256"]}
