"""coremltools' palettizer on a package that we made, and its palettes beside ours.

python -m bench.palettizer FOLDER CHECKPOINT palettize    # FOLDER holds our 16-bit artifact
python -m bench.palettizer FOLDER CHECKPOINT compare      # and our 6-bit one: JSON on stdout
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.weights.compress import SMALLEST

BITS = 6
THEIRS = "coremltools.mlpackage"


def palettize(folder: Path) -> None:
    """Let coremltools palettize the 16-bit UNet of a folder, as its documentation says."""
    import coremltools as ct
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    package = _package(folder, "16")
    model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
    settings = OpPalettizerConfig(mode="kmeans", nbits=BITS, weight_threshold=SMALLEST)
    small = palettize_weights(model, OptimizationConfig(global_config=settings))
    small.save(str(package.parent.parent / ".cache" / THEIRS))


def compare(folder: Path, checkpoint: Checkpoint) -> dict[str, object]:
    """Squared errors tensor by tensor, and the sizes of the weight files."""
    ours, theirs = _package(folder, str(BITS)), folder / ".cache" / THEIRS
    ratios, sums = {}, [0.0, 0.0]
    for name, one, other in _errors(ours, theirs, checkpoint):
        ratios[name] = one / other if other else 1.0
        sums[0] += one
        sums[1] += other
    return {
        "tensors": len(ratios),
        "ratio_of_all": sums[0] / sums[1],
        "median_ratio": median(ratios.values()),
        "largest_ratio": max(ratios.values()),
        "ours_bytes": _weights(ours).stat().st_size,
        "theirs_bytes": _weights(theirs).stat().st_size,
    }


def _errors(ours: Path, theirs: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, float, float]]:
    """Name, our squared error and theirs, of each tensor that both have palettized."""
    from verify.artifact.stored import compressed_names
    from verify.mil import load_program
    from verify.runtime.evaluator import Evaluator

    programs = [load_program(path) for path in (ours, theirs)]
    named = [compressed_names(program, checkpoint, "unet") for program in programs]
    evaluators = [Evaluator(program) for program in programs]
    tensors = checkpoint.component_tensors("unet")
    for name in sorted(named[0].keys() & named[1].keys()):
        weight = tensors[name].read(np.float16).astype(np.float32).reshape(-1)
        errors = []
        for evaluator, names in zip(evaluators, named, strict=True):
            difference = evaluator.constant(names[name].outputs[0][0]).float().numpy().reshape(-1)
            difference = difference - weight
            errors.append(float(np.dot(difference, difference)))
        yield name, errors[0], errors[1]


def _package(folder: Path, bits: str) -> Path:
    (package,) = folder.glob(f"*_{bits}-bit_*/Unet.mlpackage")
    return package


def _weights(package: Path) -> Path:
    (file,) = package.rglob("weight.bin")
    return file


def main() -> None:
    """One of the two, as the command line says."""
    folder, checkpoint, what = sys.argv[1:]
    if what == "palettize":
        palettize(Path(folder))
    else:
        print(json.dumps(compare(Path(folder), open_checkpoint(Path(checkpoint)))))


if __name__ == "__main__":
    main()
