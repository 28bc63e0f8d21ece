"""Palettes beside coremltools' k-means, on weights of full-size SDXL shapes: a Markdown table.

python -m bench.palettes             # coremltools' columns need scikit-learn
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from convert.weights.palette import Histogram, Packer, fit

SHAPES = [(640, 640, 3, 3), (1280, 1280, 1, 1), (10240, 1280, 1, 1), (1280, 2560, 3, 3)]
BITS = (4, 6, 8)
CHUNK = 2 << 20  # elements; about what `Tensor.chunks` gives

T = TypeVar("T")


def main() -> None:
    """Print the table; the passes over the weight count, then look up and pack."""
    peer = importlib.util.find_spec("sklearn") is not None
    print("| shape | bits | fit, s | passes, MB/s | coremltools, s | MSE / theirs |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        weight = np.random.default_rng(0).standard_normal(shape, np.float32) * 0.02
        weight = weight.astype(np.float16)
        for bits in BITS:
            print(
                f"| {'×'.join(map(str, shape))} | {bits} | {' | '.join(row(weight, bits, peer))} |"
            )


def row(weight: np.ndarray, bits: int, peer: bool) -> list[str]:
    """The cells of one weight; MB are of float16 input, the pass of the histogram included."""
    flat = weight.reshape(-1)
    chunks = [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]
    counting, histogram = timed(lambda: counted(chunks))
    fitting, palette = timed(lambda: fit(histogram, bits))
    packer = Packer(bits)
    packing, _ = timed(lambda: [packer.add(palette.indices(c)) for c in chunks] + [packer.finish()])
    cells = [f"{fitting:.3f}", f"{weight.nbytes / (counting + packing) / 1e6:.0f}"]
    if not peer:
        return [*cells, "scikit-learn is missing", "–"]
    seconds, (_, decoded) = timed(lambda: coremltools_palette(weight, bits))
    theirs = float(np.sum((decoded.astype(np.float64) - weight) ** 2))
    return [*cells, f"{seconds:.1f}", f"{palette.error(histogram) / theirs:.4f}"]


def counted(chunks: list[np.ndarray]) -> Histogram:
    """The histogram of a weight."""
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(chunk)
    return histogram


def coremltools_palette(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The LUT and the decoded weight of the pass behind coremltools' `palettize_weights`."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    blocks = [0] * weight.ndim
    parameters = palettize_weights.blockwise_compress(weight, "KMEANS", bits, blocks)
    lut = parameters.lut.reshape(-1)
    return lut, lut[np.asarray(parameters.indices).astype(np.uint8)]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
