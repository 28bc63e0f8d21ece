"""The one table of components: where each comes from, what it is called, what it takes and gives.

The interfaces are those that Apple's Swift package, MochiDiffusion and Guernika require; names,
shapes and dtypes are exact. Descriptions follow Apple's converter (ml-stable-diffusion 1.1.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convert.latents import SCALING_FACTOR

MAX_TOKENS = 77
BATCH = 2  # [unconditional, conditional]; Apple's XL pipeline hard-codes it


@dataclass(frozen=True)
class Component:
    """One model of an artifact: its part of the checkpoint, file name and descriptions."""

    part: str  # the checkpoint's folder
    file: str  # the model's name in a bundle, without suffix
    tensors: tuple[str, ...]  # prefixes of the part's tensors that belong to it; () for all
    inputs: dict[str, str]  # name → description
    outputs: dict[str, str]


COMPONENTS: dict[str, Component] = {
    "text_encoder": Component(
        part="text_encoder",
        file="TextEncoder",
        tensors=(),
        inputs={"input_ids": "The token ids that represent the input text"},
        outputs={
            "hidden_embeds": "Hidden states after the encoder layers",
            "pooled_outputs": "The version of the `last_hidden_state` output after pooling",
        },
    ),
    "text_encoder_2": Component(
        part="text_encoder_2",
        file="TextEncoder2",
        tensors=(),
        inputs={"input_ids": "The token ids that represent the input text"},
        outputs={
            "hidden_embeds": "Hidden states after the encoder layers",
            "pooled_outputs": "The version of the `last_hidden_state` output after pooling",
        },
    ),
    "unet": Component(
        part="unet",
        file="Unet",
        tensors=(),
        inputs={
            "sample": "The low resolution latent feature maps being denoised through reverse "
            "diffusion",
            "timestep": "A value emitted by the associated scheduler object to condition the model "
            "on a given noise schedule",
            "encoder_hidden_states": "Output embeddings from the associated text_encoder model to "
            "condition to generated image on text. A maximum of 77 tokens (~40 words) are allowed. "
            "Longer text is truncated. Shorter text does not reduce computation.",
            "time_ids": "Additional embeddings that if specified are added to the embeddings that "
            "are passed along to the UNet blocks.",
            "text_embeds": "Additional embeddings from text_encoder_2 that if specified are added "
            "to the embeddings that are passed along to the UNet blocks.",
        },
        outputs={
            "noise_pred": "Same shape and dtype as the `sample` input. The predicted noise to "
            "facilitate the reverse diffusion (denoising) process",
        },
    ),
    "vae_decoder": Component(
        part="vae",
        file="VAEDecoder",
        tensors=("decoder.", "post_quant_conv."),
        inputs={
            "z": "The denoised latent embeddings from the unet model after the last step of "
            "reverse diffusion"
        },
        outputs={"image": "Generated image normalized to range [-1, 1]"},
    ),
    "vae_encoder": Component(
        part="vae",
        file="VAEEncoder",
        tensors=("encoder.", "quant_conv."),
        inputs={"x": "The input image to base the initial latents on normalized to range [-1, 1]"},
        outputs={"latent": "The latent embeddings from the unet model from the input image."},
    ),
}

# Second names of features, that compiled models of a bundle may have for Guernika's sake: an input
# is called so instead, an output is given again under this name. See `release.pack.aliases`.
INPUT_ALIASES = {"vae_encoder": {"x": "z"}}
OUTPUT_ALIASES = {
    name: {"hidden_embeds": "last_hidden_state"} for name in ("text_encoder", "text_encoder_2")
}


def belongs(component: str, tensor: str) -> bool:
    """Whether the part's tensor of this name is one of the component's."""
    prefixes = COMPONENTS[component].tensors
    return not prefixes or tensor.startswith(prefixes)


def user_metadata(
    component: str,
    config: dict[str, Any],
    scheduler: dict[str, Any],
    model_index: dict[str, Any],
) -> dict[str, str]:
    """The settings that Guernika reads from a model's user-defined metadata (GuernikaKit).

    Only what the checkpoint states is written of the scheduler: an absent key means the app's own
    default. A VAE's scaling factor is that which its networks expect (`convert.latents`).
    """
    if component.startswith("text_encoder"):
        return {"hidden_size": str(config["hidden_size"])}
    if component.startswith("vae"):
        return {"scaling_factor": str(SCALING_FACTOR)}  # others are folded into the networks
    found: dict[str, str] = {}
    for key in ("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one"):
        if scheduler.get(key) is not None:
            value = scheduler[key]
            found[key] = str(value).lower() if isinstance(value, bool) else str(value)
    if model_index.get("requires_aesthetics_score"):
        found["requires_aesthetics_score"] = "true"
    return found
