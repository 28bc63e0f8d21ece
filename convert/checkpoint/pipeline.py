"""What diffusers' SDXL pipelines ask of a checkpoint beside its networks, as plain JSON.

It travels in an artifact's manifest, so that pictures can be made without the checkpoint. The keys
are those that `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline` read (diffusers),
and `shift_factor`, which they do not, of what is folded into the VAE (`convert.latents`).
"""

from __future__ import annotations

from typing import Any

from convert.checkpoint.checkpoint import SCHEDULER, Checkpoint
from convert.checkpoint.pipeline_documents import (
    IndexPart,
    SchedulerPart,
    TextPart,
    UNetPart,
    VAEPart,
    sayable,
)
from convert.files.documents import Document, checked
from convert.latents import DEFAULT, SCALING_FACTOR

CONFIGS: dict[str, tuple[str, ...]] = {
    "unet": (
        "in_channels",
        "sample_size",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    ),
    "vae": (
        "block_out_channels",
        "latent_channels",
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "force_upcast",
    ),
    "text_encoder_2": ("projection_dim",),
}
PARTS: dict[str, type[Document]] = {"unet": UNetPart, "vae": VAEPart, "text_encoder_2": TextPart}
# diffusers' and transformers' own defaults, for configs that leave them out.
DEFAULTS = {
    "in_channels": 4,
    "sample_size": None,
    "latent_channels": 4,
    "scaling_factor": DEFAULT,
    "force_upcast": True,
    "projection_dim": 512,
}
# For an artifact's VAE, whatever the checkpoint says: that is folded into the networks.
FOLDED = {
    "scaling_factor": SCALING_FACTOR,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
INDEX = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}


def pipeline_config(checkpoint: Checkpoint, *, folded: bool = True) -> dict[str, Any]:
    """The configs of UNet, VAE and text encoder 2, the scheduler's, and padding and added tokens.

    Args:
        folded: how latents are scaled for the converted VAE, instead of for the checkpoint's.
    """
    found: dict[str, Any] = {
        part: {key: checkpoint.parts[part].config.get(key, DEFAULTS.get(key)) for key in keys}
        for part, keys in CONFIGS.items()
    }
    # Switched off in whatever way; see `convert.checkpoint.config_reader`.
    found["unet"]["time_cond_proj_dim"] = found["unet"]["time_cond_proj_dim"] or None
    for part, kind in PARTS.items():
        checked(kind, found[part], checkpoint.parts[part].path / "config.json")
    if folded:
        found["vae"].update(FOLDED)
    checked(SchedulerPart, checkpoint.scheduler, checkpoint.path / SCHEDULER)
    found["scheduler"] = {k: sayable(v) for k, v in sorted(checkpoint.scheduler.items())}
    found["pipeline"] = {
        key: checkpoint.model_index.get(key, value) for key, value in INDEX.items()
    }
    checked(IndexPart, found["pipeline"], checkpoint.path / "model_index.json")
    tokenizers = checkpoint.tokenizers
    found["pad_tokens"] = {name: tokenizer.pad_token for name, tokenizer in tokenizers.items()}
    if any(tokenizer.added for tokenizer in tokenizers.values()):
        found["added_tokens"] = {
            name: [token.to_json() for token in tokenizer.added]
            for name, tokenizer in tokenizers.items()
        }
    return found
