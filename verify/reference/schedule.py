"""The noise schedule of the recorded run: Euler's method through diffusers, at fixed timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from verify.reference.reference import quiet

TIMESTEPS = (999, 801, 500, 250, 37, 1)
# Latents of SDXL lie within ±4. An untrained network, which denoises nothing, would leave that
# range and ask of fp16 what no real run does.
LATENT_LIMIT = 4.0
# What the schedulers of SDXL checkpoints say; a checkpoint without the file means this.
DEFAULTS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def euler(config: Mapping[str, Any], timesteps: Sequence[int] = TIMESTEPS) -> Any:
    """diffusers' EulerDiscreteScheduler on a checkpoint's noise schedule, at some timesteps."""
    from diffusers import EulerDiscreteScheduler

    names = (*DEFAULTS, "trained_betas", "rescale_betas_zero_snr")
    settings = {**DEFAULTS, **{k: config[k] for k in names if config.get(k) is not None}}
    with quiet():
        scheduler = EulerDiscreteScheduler(**settings)
        scheduler.set_timesteps(timesteps=list(timesteps))
    return scheduler


def step(scheduler: Any, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """Euler's step, with the denoised latents kept in the range that latents have."""
    sigma, following = scheduler.sigmas[scheduler.index_for_timestep(timestep) :][:2]
    with quiet():
        denoised = scheduler.step(prediction, timestep, latents).pred_original_sample
    denoised = denoised.clamp(-LATENT_LIMIT, LATENT_LIMIT)
    return denoised + (latents - denoised) * (following / sigma)
