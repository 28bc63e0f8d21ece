"""The one table of components: where each comes from, what it is called, what it takes and gives.

The interfaces are those that Apple's Swift package, MochiDiffusion and Guernika require; names,
shapes and dtypes are exact. Descriptions follow Apple's converter (ml-stable-diffusion 1.1.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_TOKENS = 77
BATCH = 2  # [unconditional, conditional]; Apple's XL pipeline hard-codes it


ComponentKind = Literal["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@dataclass(frozen=True)
class Subfolder:
    """A folder of a checkpoint in diffusers' layout that holds a network."""

    classes: tuple[str, ...]  # as its config.json may call it; the last is SDXL's
    library: Literal["diffusers", "transformers"] = "diffusers"  # which loads it
    is_optional: bool = False


SUBFOLDERS = {
    "unet": Subfolder(("UNet2DConditionModel",)),
    "vae": Subfolder(("AutoencoderKL",)),
    "text_encoder": Subfolder(
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        library="transformers",
        is_optional=True,  # a refiner has none
    ),
    "text_encoder_2": Subfolder(("CLIPTextModelWithProjection",), library="transformers"),
}


@dataclass(frozen=True)
class FeatureSpec:
    """An input or output. A size that is a name depends on a config or on the resolution.

    `H` and `W` are the image's, `h` and `w` the latents'; the others are each config's `sizes`.
    """

    shape: tuple[int | str, ...]
    description: str
    dtype: Literal["float32", "computed"] = "computed"  # or what the component computes in


@dataclass(frozen=True)
class Component:
    """One model of an artifact, and all that does not depend on the checkpoint."""

    kind: ComponentKind  # which reference it is, and which recorded inputs it gets
    network: str  # the function in `convert.networks` that builds it: `module:name`
    part: str  # its folder, of `SUBFOLDERS`
    file: str  # the model's name in a bundle, without suffix
    label: str  # for people
    short: str  # the same where there is no room
    inputs: dict[str, FeatureSpec]
    outputs: dict[str, FeatureSpec]  # always float32
    tensors: tuple[str, ...] = ()  # prefixes of the part's tensors that belong to it; () for all
    projected: bool = False  # whether a text encoder's pooled output is
    has_attention: bool = False  # whether it is made for each attention implementation
    is_half: bool = True  # computes in float16; or as the recipe's `vae_precision` says
    is_compressed: bool = True  # in the artifact's bits; or only where a recipe asks for it
    is_optional: bool = False  # whether text to image works without it

    @property
    def has_resolution(self) -> bool:
        """Whether it is made for each resolution."""
        return any({"H", "W", "h", "w"} & {*f.shape} for f in self.inputs.values())

    @property
    def input_dtype(self) -> Literal["float32", "computed"]:
        """The shapes of all its inputs."""
        (dtype,) = {feature.dtype for feature in self.inputs.values()}
        return dtype

    @property
    def texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """The descriptions of its inputs and of its outputs, by name."""
        inputs, outputs = (
            {name: feature.description for name, feature in features.items()}
            for features in (self.inputs, self.outputs)
        )
        return inputs, outputs


_INPUT_IDS = FeatureSpec((1, MAX_TOKENS), "The token ids that represent the input text", "float32")
_HIDDEN = FeatureSpec((1, MAX_TOKENS, "width"), "Hidden states after the encoder layers")
_POOLED = "The version of the `last_hidden_state` output after pooling"

COMPONENTS: dict[str, Component] = {
    "text_encoder": Component(
        kind="text_encoder",
        network="clip:text_encoder",
        part="text_encoder",
        file="TextEncoder",
        label="Text encoder",
        short="text",
        inputs={"input_ids": _INPUT_IDS},
        outputs={"hidden_embeds": _HIDDEN, "pooled_outputs": FeatureSpec((1, "width"), _POOLED)},
    ),
    "text_encoder_2": Component(
        kind="text_encoder",
        network="clip:text_encoder",
        part="text_encoder_2",
        file="TextEncoder2",
        label="Text encoder 2",
        short="text 2",
        projected=True,
        inputs={"input_ids": _INPUT_IDS},
        outputs={
            "hidden_embeds": _HIDDEN,
            "pooled_outputs": FeatureSpec((1, "projection"), _POOLED),
        },
    ),
    "unet": Component(
        kind="unet",
        network="unet:unet",
        part="unet",
        file="Unet",
        label="UNet",
        short="UNet",
        has_attention=True,
        inputs={
            "sample": FeatureSpec(
                (BATCH, "sample channels", "h", "w"),
                "The low resolution latent feature maps being denoised through reverse diffusion",
            ),
            "timestep": FeatureSpec(
                (BATCH,),
                "A value emitted by the associated scheduler object to condition the model on a "
                "given noise schedule",
            ),
            "encoder_hidden_states": FeatureSpec(
                (BATCH, "context", 1, MAX_TOKENS),
                "Output embeddings from the associated text_encoder model to condition to "
                "generated image on text. A maximum of 77 tokens (~40 words) are allowed. Longer "
                "text is truncated. Shorter text does not reduce computation.",
            ),
            "time_ids": FeatureSpec(
                (BATCH, "time ids"),
                "Additional embeddings that if specified are added to the embeddings that are "
                "passed along to the UNet blocks.",
            ),
            "text_embeds": FeatureSpec(
                (BATCH, "pooled"),
                "Additional embeddings from text_encoder_2 that if specified are added to the "
                "embeddings that are passed along to the UNet blocks.",
            ),
        },
        outputs={
            "noise_pred": FeatureSpec(
                (BATCH, "noise channels", "h", "w"),
                "Same shape and dtype as the `sample` input. The predicted noise to facilitate the "
                "reverse diffusion (denoising) process",
            )
        },
    ),
    "vae_decoder": Component(
        kind="vae_decoder",
        network="vae:vae_decoder",
        part="vae",
        file="VAEDecoder",
        label="VAE decoder",
        short="VAE dec",
        is_half=False,
        is_compressed=False,
        tensors=("decoder.", "post_quant_conv."),
        inputs={
            "z": FeatureSpec(
                (1, "latent channels", "h", "w"),
                "The denoised latent embeddings from the unet model after the last step of reverse "
                "diffusion",
            )
        },
        outputs={
            "image": FeatureSpec(
                (1, "image channels", "H", "W"), "Generated image normalized to range [-1, 1]"
            )
        },
    ),
    "vae_encoder": Component(
        kind="vae_encoder",
        network="vae:vae_encoder",
        part="vae",
        file="VAEEncoder",
        label="VAE encoder",
        short="VAE enc",
        is_half=False,
        is_compressed=False,
        is_optional=True,
        tensors=("encoder.", "quant_conv."),
        inputs={
            "x": FeatureSpec(
                (1, "input channels", "H", "W"),
                "The input image to base the initial latents on normalized to range [-1, 1]",
            )
        },
        outputs={
            "latent": FeatureSpec(
                (1, "moments", "h", "w"),
                "The latent embeddings from the unet model from the input image.",
            )
        },
    ),
}

# Second names of features, that compiled models of a bundle may have for Guernika's sake: an input
# is called so instead, an output is given again under this name. See `release.pack.aliases`.
INPUT_ALIASES = {"vae_encoder": {"x": "z"}}
OUTPUT_ALIASES = {
    name: {"hidden_embeds": "last_hidden_state"}
    for name, spec in COMPONENTS.items()
    if spec.kind == "text_encoder"
}


def belongs(component: str, tensor: str) -> bool:
    """Whether the part's tensor of this name is one of the component's."""
    prefixes = COMPONENTS[component].tensors
    return not prefixes or tensor.startswith(prefixes)
