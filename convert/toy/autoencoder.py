"""Training of the toy's VAE, and the scale of its latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convert.process.progress import Say
from convert.toy.drawings import draw, random_scenes
from convert.toy.networks import SCALING_FACTOR, make_autoencoder
from convert.toy.training import train

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SEED = 1
# Weight of the KL term: in the first third of the steps, where it spreads the latents, and after.
KL_WEIGHT, LATE_KL_WEIGHT = 1e-3, 1e-4
EDGE_WEIGHT = 1.0
# The share of the steps on crops; whole pictures follow, as group norm sees more of them.
CROPS, CROP = 0.875, 64


def train_autoencoder(folder: Path, *, steps: int, say: Say) -> AutoencoderKL:
    """Train the VAE, with its latents at the scale that `SCALING_FACTOR` says."""
    torch.manual_seed(SEED)
    network = make_autoencoder()

    def loss(step: int, part: int) -> Tensor:
        whole = step >= CROPS * steps
        pictures = random_pictures(3 if whole else 8, [step, part], crop=None if whole else CROP)
        posterior = network.encode(pictures).latent_dist
        noise = torch.randn(
            posterior.mean.shape, generator=torch.Generator().manual_seed(2 * step + part)
        )  # [N, 4, H / 8, W / 8]
        decoded = network.decode(posterior.mean + posterior.std * noise).sample
        error = decoded - pictures
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        kl_weight = KL_WEIGHT if step < steps / 3 else LATE_KL_WEIGHT
        return error.abs().mean() + EDGE_WEIGHT * edges + kl_weight * kl

    train(network, loss, folder / "autoencoder.pt", steps=steps, rate=0.02, say=say)
    _normalise(network)
    return network


def random_pictures(
    count: int, seed: Sequence[int], *, crop: int | None = None, height: int = 128, width: int = 128
) -> Tensor:
    """Pictures in [-1, 1], [N, 3, H, W]; crops hold the middle of a side or the shape's."""
    generator = np.random.default_rng([SEED, *seed])
    pictures = draw(random_scenes(count, generator), height, width, generator)
    if crop is not None:
        rows, columns = generator.integers(0, (height - crop, width - crop), (count, 2)).T
        pictures = np.stack(
            [p[r : r + crop, c : c + crop] for p, r, c in zip(pictures, rows, columns, strict=True)]
        )
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _normalise(network: AutoencoderKL) -> None:
    """Move each latent channel to mean 0 and deviation 1 / SCALING_FACTOR, decoding unchanged.

    The change goes into the 1×1 convolutions on both sides of the latents. A channel that training
    left all but unused stays small, or its rounding errors would become a part of the picture.
    """
    latents = network.encode(random_pictures(256, [1 << 20])).latent_dist.mean
    mean = latents.mean((0, 2, 3))  # [4]
    deviation = latents.std((0, 2, 3))  # [4]
    scale = 1 / (SCALING_FACTOR * deviation.clamp(min=float(deviation.max()) / 5))  # [4]
    into, out = network.quant_conv, network.post_quant_conv
    channels = len(mean)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= scale[:, None, None]
    into.weight[:channels] *= scale[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) * scale
    into.bias[channels:] += 2 * scale.log()
