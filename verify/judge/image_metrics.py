"""How near one picture is to another: PSNR and SSIM, both on values 0…1, so with peak 1.0.

- `psnr_db`: 10·log10(1 / mean((ref − out)²)) over all pixels and channels.
- `ssim`: scikit-image's `structural_similarity` with its defaults (7×7 uniform window), the mean
  over the channels; None where scikit-image is not installed, which no gate takes for a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from verify.judge.metrics import json_number

PSNR = "PSNR = 10·log10(1 / mean((ref − out)²)) on images in 0…1, peak 1.0"


@dataclass(frozen=True)
class ImageMetrics:
    """The two measures of one picture; NaN where a picture is not finite."""

    psnr_db: float  # inf if identical
    ssim: float | None

    def to_json(self) -> dict[str, Any]:
        """PSNR in dB and SSIM by name; infinities and NaN as in `Metrics.to_json`."""
        ssim = None if self.ssim is None else json_number(self.ssim)
        return {"psnr_db": json_number(self.psnr_db), "ssim": ssim}


def compare_images(reference: np.ndarray, output: np.ndarray) -> ImageMetrics:
    """Compare two pictures of one shape, [H, W, 3] in 0…1."""
    ref, out = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    if not (np.isfinite(ref).all() and np.isfinite(out).all()):
        return ImageMetrics(math.nan, None)
    error = float(np.square(ref - out).mean())
    return ImageMetrics(math.inf if error == 0 else -10 * math.log10(error), _ssim(ref, out))


def _ssim(reference: np.ndarray, output: np.ndarray) -> float | None:
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return float(structural_similarity(reference, output, data_range=1.0, channel_axis=2))
