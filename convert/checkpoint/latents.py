"""How a VAE's latents are scaled, and what of that is folded into its networks.

Apps know one scaling only: Apple's Swift package as its callers set it, MochiDiffusion, Swift Core
ML Diffusers and Guernika multiply SDXL's encoded latents by 0.13025 and divide by it before they
decode. Whatever else a checkpoint's VAE asks for becomes part of the decoder and the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import InputError
from convert.files.json_files import shown

SCALING_FACTOR = 0.13025  # SDXL's, which apps assume whatever the config says
DEFAULT = 0.18215  # of diffusers' AutoencoderKL, for a config that does not say

Affine = tuple[np.ndarray, np.ndarray]  # scale and offset, float32 [1, C, 1, 1]


@dataclass(frozen=True)
class LatentScaling:
    """What a VAE's decoder is given: latents · std / scaling_factor + mean, or + shift_factor.

    Source: diffusers' StableDiffusionXLPipeline and …Img2ImgPipeline, which take `latents_mean` and
    `latents_std` if both are there, and do not read `shift_factor`; that of the pipelines which do
    (StableDiffusion3Pipeline, FluxPipeline).
    """

    scaling_factor: float
    shift_factor: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path, channels: int) -> LatentScaling:
        """Read a VAE's config.json; raises InputError for a scaling that no latents can have."""
        factor = _number("scaling_factor", where, values.get("scaling_factor", DEFAULT))
        if factor <= 0:
            raise _error("scaling_factor", factor, "a number above 0", where)
        shift = values.get("shift_factor")
        shift = 0.0 if shift is None else _number("shift_factor", where, shift)
        mean = _numbers(values, "latents_mean", where, channels)
        std = _numbers(values, "latents_std", where, channels)
        if std is not None and min(std) <= 0:
            raise _error("latents_std", list(std), "numbers above 0", where)
        if mean is None or std is None:
            mean = std = None  # as diffusers does
        elif shift:
            raise InputError(
                "has `shift_factor` beside `latents_mean` and `latents_std`, and no pipeline of "
                "diffusers says what both mean",
                where=where,
                hint="Remove one of them.",
            )
        scaling = LatentScaling(factor, shift, mean, std)
        with np.errstate(all="ignore"):
            numbers = (*scaling.decoder(channels), *scaling.encoder(channels))
        if not all(np.isfinite(n).all() for n in numbers):
            raise InputError(f"scales latents out of float32's range: {scaling}", where=where)
        return scaling

    @property
    def is_standard(self) -> bool:
        """Whether apps scale the latents so already."""
        return self == LatentScaling(SCALING_FACTOR)

    def decoder(self, channels: int) -> Affine:
        """What turns latents divided by 0.13025 into those that the decoder was trained on."""
        std = np.array(self.std or [1.0] * channels)
        scale = std * (SCALING_FACTOR / self.scaling_factor)
        return _channels(scale), _channels(self._offset(channels))

    def encoder(self, channels: int) -> Affine:
        """The same for what the encoder gives, mean ‖ log-variance, 2 · channels of them.

        A sample mean + std · noise, scaled by a, has the mean a · mean and the log-variance
        log-variance + 2 ln a. Apps, like diffusers, clamp log-variances to [-30, 20] afterwards
        instead of before: that moves a standard deviation by less than 4e-7 · max(1, a).
        """
        scale = (self.scaling_factor / SCALING_FACTOR) / np.array(self.std or [1.0] * channels)
        ones = np.ones(channels)
        return (
            _channels(np.concatenate([scale, ones])),
            _channels(np.concatenate([-self._offset(channels) * scale, 2 * np.log(scale)])),
        )

    def _offset(self, channels: int) -> np.ndarray:
        return np.array(self.mean) if self.mean else np.full(channels, self.shift_factor)

    def __str__(self) -> str:
        """The keys of a config, without those that it leaves out."""
        said = [f"scaling_factor {self.scaling_factor:g}"]
        if self.shift_factor:
            said.append(f"shift_factor {self.shift_factor:g}")
        for name, numbers in (("latents_mean", self.mean), ("latents_std", self.std)):
            if numbers is not None:
                said.append(f"{name} [{', '.join(f'{n:g}' for n in numbers)}]")
        return ", ".join(said)


def _channels(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, -1, 1, 1)


def _number(key: str, where: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(key, value, "a number", where)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _error(key, value, "a finite number", where)
    return number


def _numbers(
    values: Mapping[str, Any], key: str, where: Path, channels: int
) -> tuple[float, ...] | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != channels:
        raise _error(key, value, f"{channels} numbers, one a channel of the latents", where)
    return tuple(_number(f"{key}[{i}]", where, number) for i, number in enumerate(value))


def _error(key: str, value: Any, allowed: str, where: Path) -> InputError:
    return InputError(f"`{key}` is {shown(value)}; it has to be {allowed}", where=where)
