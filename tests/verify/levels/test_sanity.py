"""Pictures that are none are told from pictures, whatever the style."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convert.values import Resolution
from verify.levels.sanity import find_flaw
from verify.sampling.sampling import start_image

SIZE = 128


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    return y, x


def flat_shape(radius: float) -> np.ndarray:
    """A drawing: one disc on a ground of one colour."""
    y, x = grid()
    inside = np.hypot(x - 0.4, y - 0.6) < radius
    return np.where(inside[..., None], (0.9, 0.2, 0.1), (0.1, 0.2, 0.8)).astype(np.float32)


def photograph() -> np.ndarray:
    """As photographs are: amplitudes fall with frequency (Field 1987), with grain on top."""
    generator = np.random.default_rng(0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    radius[0, 0] = 1 / SIZE
    spectrum = np.fft.fft2(generator.standard_normal((3, SIZE, SIZE))) / radius
    image = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)
    image = 0.5 + 0.15 * image / image.std() + 0.03 * generator.standard_normal(image.shape)
    return np.clip(image, 0, 1)


def night() -> np.ndarray:
    """A dark picture with a few lights."""
    image = np.full((SIZE, SIZE, 3), 0.01)
    image[20:30, 60:70] = image[90:110, 10:20] = (0.9, 0.8, 0.5)
    return image


def latent_noise() -> np.ndarray:
    """Latents that nobody denoised, decoded: blobs of eight pixels."""
    noise = torch.randn(1, 3, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, scale_factor=8, mode="bilinear")[0].permute(1, 2, 0)
    return np.clip(0.5 + 0.3 * image.numpy(), 0, 1)


def half_broken() -> np.ndarray:
    image = flat_shape(0.3)
    image[5, 6] = np.nan
    return image


HEALTHY: dict[str, Callable[[], np.ndarray]] = {
    "a large disc": lambda: flat_shape(0.35),
    "a small disc": lambda: flat_shape(0.08),
    "a dot": lambda: flat_shape(0.02),
    "a photograph": photograph,
    "a night": night,
    "a gradient": lambda: np.repeat(grid()[0][..., None], 3, axis=2),
    "the start image": lambda: start_image(Resolution(SIZE, SIZE)) / 255,
}
FLAWED: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "NaN": ("not finite", half_broken),
    "infinity": ("not finite", lambda: np.full((SIZE, SIZE, 3), np.inf)),
    "black": ("black", lambda: np.zeros((SIZE, SIZE, 3))),
    "nearly black": ("black", lambda: photograph() * 0.02),
    "grey": ("constant", lambda: np.full((SIZE, SIZE, 3), 0.5)),
    "white": ("constant", lambda: np.ones((SIZE, SIZE, 3))),
    "one colour": ("constant", lambda: np.full((SIZE, SIZE, 3), (0.9, 0.1, 0.2))),
    "white noise": ("noise", lambda: np.random.default_rng(1).random((SIZE, SIZE, 3))),
    "decoded noise": ("noise", latent_noise),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_picture_is_one(name: str) -> None:
    flaw = find_flaw(HEALTHY[name]())
    assert flaw is None, str(flaw)


@pytest.mark.parametrize("name", FLAWED)
def test_what_is_no_picture_is_named(name: str) -> None:
    kind, make = FLAWED[name]
    flaw = find_flaw(make())
    assert flaw is not None
    assert flaw.kind == kind
    assert str(flaw)
