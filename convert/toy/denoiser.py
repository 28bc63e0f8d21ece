"""Training of the toy's UNet and text encoders, together, on the VAE's latents."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from convert.process.progress import Say
from convert.toy.drawings import Scene, caption, draw, random_scenes
from convert.toy.networks import SCALING_FACTOR, make_text_encoders, make_unet
from convert.toy.random_checkpoint import SCHEDULER
from convert.toy.training import THREADS, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

SEED = 2
BATCH = 32
# (height, width) and number of the pictures; each size is met in proportion to it.
BUCKETS = {(128, 128): 3600, (128, 192): 1800, (192, 128): 1800}
EMPTY = 0.05  # the share of captions that are empty, and of those whose embeddings are all zero
# CLIP's own deviation of 0.02 is so far below the UNet's that captions are not heard for long.
EMBEDDING_DEVIATION = 0.5
# Added to each latent channel as a whole, as SDXL's own training did (with 0.05): the mean of a
# noisy latent then says little about the background's colour, which captions have to say.
NOISE_OFFSET = 0.1
MAX_SNR = 5.0  # of min-SNR weighting (Hang et al. 2023, https://arxiv.org/abs/2303.09556)


class Denoiser(nn.Module):
    """UNet and text encoders, called as diffusers' pipeline calls them."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.unet = make_unet()
        self.text_encoder, self.text_encoder_2 = make_text_encoders(vocab_size)
        for encoder in (self.text_encoder, self.text_encoder_2):
            nn.init.normal_(encoder.get_input_embeddings().weight, std=EMBEDDING_DEVIATION)

    def forward(
        self, sample: Tensor, timestep: Tensor, ids: Tensor, ids_2: Tensor, keep: Tensor
    ) -> Tensor:
        """The noise predicted in `sample`, [N, 4, H / 8, W / 8].

        Args:
            sample: noisy latents, [N, 4, H / 8, W / 8].
            timestep: [N].
            ids, ids_2: the captions' tokens, [N, 77].
            keep: 0 where the embeddings are to be zero, else 1, [N].
        """
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)  # [N, 77, D]
        height, width = (8 * side for side in sample.shape[2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(sample), -1)
        condition = {
            "text_embeds": second.text_embeds * keep[:, None],  # [N, D₂]
            "time_ids": time_ids.float(),  # [N, 6]
        }
        return self.unet(
            sample, timestep, hidden * keep[:, None, None], added_cond_kwargs=condition
        ).sample


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size: what they show, and their latents times the scaling factor."""

    scenes: Sequence[Scene]
    latents: Tensor  # [N, 4, H / 8, W / 8]


def train_denoiser(
    autoencoder: AutoencoderKL,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    folder: Path,
    *,
    steps: int,
    say: Say,
) -> Denoiser:
    """Train UNet and text encoders to predict the noise in latents, by captions."""
    torch.manual_seed(SEED)
    network = Denoiser(len(tokenizers[0]))
    buckets = _encode(autoencoder, folder / "latents.pt", say)
    share = np.array(list(BUCKETS.values())) / sum(BUCKETS.values())
    kept = _signal_shares()  # [1000]

    def loss(step: int, part: int) -> Tensor:
        bucket = buckets[int(np.random.default_rng([SEED, step]).choice(len(buckets), p=share))]
        generator = np.random.default_rng([SEED, step, part])
        count = BATCH // THREADS
        chosen = generator.integers(len(bucket.scenes), size=count)
        drop = generator.random(count)
        texts = [
            "" if d < EMPTY else caption(bucket.scenes[i], generator)
            for i, d in zip(chosen, drop, strict=True)
        ]
        ids = [
            t(texts, padding="max_length", return_tensors="pt").input_ids for t in tokenizers
        ]  # [N, 77] each
        latents = bucket.latents[chosen]
        noise = torch.from_numpy(generator.standard_normal(latents.shape, np.float32))
        shift = generator.standard_normal((count, latents.shape[1], 1, 1), np.float32)
        noise += NOISE_OFFSET * torch.from_numpy(shift)
        # What captions decide is decided where there is much noise, so that is met more often.
        spread = 1 - (1 - (np.arange(count) + generator.random(count)) / count) ** 2
        timestep = torch.from_numpy((spread * len(kept)).astype(np.int64))  # [N]
        share_kept = kept[timestep][:, None, None, None]
        noisy = share_kept.sqrt() * latents + (1 - share_kept).sqrt() * noise
        keep = torch.from_numpy((drop < 1 - EMPTY).astype(np.float32))
        error = (network(noisy, timestep, *ids, keep) - noise).square().mean((1, 2, 3))  # [N]
        snr = kept[timestep] / (1 - kept[timestep])
        # The picture hardly changes the error where there is much noise: 1 / ᾱ makes it the
        # velocity's (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512).
        weight = snr.clamp(max=MAX_SNR) / snr / kept[timestep]  # [N]
        return (error * weight).mean()

    train(network, loss, folder / "denoiser.pt", steps=steps, rate=0.005, say=say)
    return network


def _signal_shares() -> Tensor:
    """The share of the latents' variance that is left at each timestep, ᾱ, [1000]."""
    begin, end, count = (SCHEDULER[k] for k in ("beta_start", "beta_end", "num_train_timesteps"))
    betas = torch.linspace(begin**0.5, end**0.5, count, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def _encode(autoencoder: AutoencoderKL, state: Path, say: Say) -> list[Bucket]:
    """Latents of all pictures, from the file `state` if it is there."""
    generator = np.random.default_rng(SEED)
    scenes = [random_scenes(count, generator) for count in BUCKETS.values()]

    @torch.no_grad()
    def encode(pictures: np.ndarray) -> Tensor:
        sample = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, H, W]
        return autoencoder.encode(sample).latent_dist.mean * SCALING_FACTOR

    if not state.exists():
        latents = []
        with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for (height, width), chosen in zip(BUCKETS, scenes, strict=True):
                batches = (chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH))
                pictures = (draw(batch, height, width, generator) for batch in batches)
                latents.append(torch.cat(list(pool.map(encode, pictures))))
                say(f"{len(chosen)} pictures of {width}x{height} encoded")
        torch.save(latents, state)
    loaded = torch.load(state, weights_only=True)
    return [Bucket(s, z) for s, z in zip(scenes, loaded, strict=True)]
