"""Whether a picture is one at all: not finite, black, of one colour and noise are found directly.

Measures of image similarity do not tell: a black frame can score above a healthy picture, and one
picture of noise is as far from its reference as a good picture with another composition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

BLACK = 10 / 255  # nothing brighter, but for one pixel in a hundred
CONSTANT = 1 / 255  # standard deviation of every channel
BLOCK = 8  # pixels; a latent of SDXL
LAG = 2  # blocks; next to each other, decoded latents overlap
# Correlation of the blocks' means. Amplitudes of natural images fall as 1/frequency (D. J. Field,
# "Relations between the statistics of natural images and the response properties of cortical
# cells", 1987); of such pictures, drawn at random, it is 0.31 ± 0.04 at 128×128 pixels and
# 0.56 ± 0.01 at 512×512. Of white noise, per pixel or per latent, it is 0 ± 0.05 and 0 ± 0.01.
CORRELATION = 0.12
# Median deviation of the blocks in σ. Of a normal distribution it is 0.67, and of noise, drawn at
# random at 64×64 pixels and more, at least 0.4; of a dot on a plain ground it is nearly 0.
SPREAD = 0.3
FEWEST = 6  # blocks along a side, below which correlation tells nothing


@dataclass(frozen=True)
class Flaw:
    """Why something is no picture."""

    kind: Literal["not finite", "black", "constant", "noise"]
    text: str

    def __str__(self) -> str:
        return self.text


def find_flaw(image: np.ndarray) -> Flaw | None:
    """What is wrong with a picture, or None.

    Args:
        image: [H, W, 3] in 0…1.
    """
    pixels = np.asarray(image, np.float64)
    bad = int((~np.isfinite(pixels)).sum())
    if bad:
        return Flaw("not finite", f"{bad} of its {pixels.size} values are not finite")
    if np.quantile(pixels.max(axis=2), 0.99) < BLACK:
        return Flaw("black", f"it is black: 99 % of its pixels are below {BLACK:.3f}")
    deviation = float(pixels.std(axis=(0, 1)).max())
    if deviation < CONSTANT:
        colour = ", ".join(f"{value:.2f}" for value in pixels.mean(axis=(0, 1)))
        text = f"it is all of one colour ({colour}), standard deviation {deviation:.4f}"
        return Flaw("constant", text)
    blocks = _blocks(pixels)
    if min(blocks.shape[:2]) >= FEWEST:
        correlation, spread = _correlation(blocks), _spread(blocks)
        if correlation < CORRELATION and spread > SPREAD:
            text = (
                f"it is noise: blocks that are {LAG * BLOCK} pixels apart correlate by "
                f"{correlation:.2f}, those of a picture by more than {CORRELATION}"
            )
            return Flaw("noise", text)
    return None


def _blocks(pixels: np.ndarray) -> np.ndarray:
    """Means of 8×8 pixels, so that both noise of pixels and decoded noise of latents shows."""
    height, width = (side // BLOCK for side in pixels.shape[:2])
    cut = pixels[: height * BLOCK, : width * BLOCK]
    return cut.reshape(height, BLOCK, width, BLOCK, -1).mean(axis=(1, 3))


def _correlation(blocks: np.ndarray) -> float:
    """Correlation of blocks that are `LAG` apart along rows and columns, over all channels."""
    centred = blocks - blocks.mean(axis=(0, 1))
    down, right = centred[LAG:] * centred[:-LAG], centred[:, LAG:] * centred[:, :-LAG]
    products = down.mean() + right.mean()
    return float(products / 2 / max(np.square(centred).mean(), 1e-12))


def _spread(blocks: np.ndarray) -> float:
    """The median deviation from the median, in standard deviations."""
    deviation = np.abs(blocks - np.median(blocks, axis=(0, 1))).mean(axis=2)
    sigma = float(np.sqrt(np.square(blocks - blocks.mean(axis=(0, 1))).mean()))
    return float(np.median(deviation)) / max(sigma, 1e-12)
