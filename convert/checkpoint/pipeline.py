"""What pipelines ask of a checkpoint beside its networks: diffusers' own, and Guernika's.

It travels in an artifact's manifest, so that pictures can be made without the checkpoint. The keys
are those that `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline` read (diffusers),
and `shift_factor`, which they do not, of what is folded into the VAE
(`convert.checkpoint.latents`).
"""

from __future__ import annotations

from typing import Any

from convert.checkpoint.checkpoint import SCHEDULER, Checkpoint
from convert.checkpoint.latents import DEFAULT, SCALING_FACTOR
from convert.checkpoint.pipeline_documents import (
    IndexPart,
    SchedulerPart,
    TextPart,
    UNetPart,
    VAEPart,
    sayable,
)
from convert.components import COMPONENTS
from convert.files.documents import Document, checked

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
        checked(kind, found[part], checkpoint.parts[part].config_file)
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


def user_metadata(
    component: str,
    config: dict[str, Any],
    scheduler: dict[str, Any],
    model_index: dict[str, Any],
) -> dict[str, str]:
    """The settings that Guernika reads from a model's user-defined metadata (GuernikaKit).

    Only what the checkpoint states is written of the scheduler: an absent key means the app's own
    default. A VAE's scaling factor is that which its networks expect
    (`convert.checkpoint.latents`).
    """
    spec = COMPONENTS[component]
    if spec.kind == "text_encoder":
        return {"hidden_size": str(config.get("hidden_size", 512))}  # transformers' default
    if spec.part == "vae":
        return {"scaling_factor": str(SCALING_FACTOR)}  # others are folded into the networks
    found: dict[str, str] = {}
    for key in ("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one"):
        if scheduler.get(key) is not None:
            value = scheduler[key]
            found[key] = str(value).lower() if isinstance(value, bool) else str(value)
    if model_index.get("requires_aesthetics_score"):
        found["requires_aesthetics_score"] = "true"
    return found
