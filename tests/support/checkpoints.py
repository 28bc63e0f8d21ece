"""Tiny SDXL checkpoints for tests, built and saved by diffusers and transformers themselves.

`make_checkpoint(folder)` writes one; `SHAPES` names the variants that the networks must cover.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import Description
from convert.values import FORMATS, DeploymentTarget, Resolution
from tests.support.packages import write_package
from verify.reference.reference import quiet

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "hidden_act": "quick_gelu",
    "projection_dim": 24,
    "eos_token_id": 2,  # as SDXL's own configs say; it means the highest token id
    "bos_token_id": 0,
    "pad_token_id": 1,
}
TEXT_2: dict[str, Any] = {
    **TEXT,
    "hidden_size": 40,
    "intermediate_size": 96,
    "num_attention_heads": 5,
    "hidden_act": "gelu",
    "projection_dim": 32,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
MERGES = (
    "t h",
    "a n",
    "i n",
    "o n</w>",
    "e r",
    "th e</w>",
    "an d</w>",
    "in g</w>",
    "o r",
    "a u",
    "au t",
    "r i",
    "h or",
    "hor s",
    "hors e</w>",
    "g r",
    "e d</w>",
    "l o",
    "lo w",
    "low r",
)
EOS = 512 + len(MERGES) + 1  # 256 bytes, each also at a word's end, the merges, start, end

# name → arguments of make_checkpoint
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "wide_groups_32": {
        "unet": {
            "block_out_channels": (32, 32, 64),
            "norm_num_groups": 32,
            "attention_head_dim": (2, 2, 4),
        },
        "vae": {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 32},
    },
    "groups_16_one_layer": {
        "unet": {"norm_num_groups": 16, "layers_per_block": 1, "addition_time_embed_dim": 16},
        "vae": {"norm_num_groups": 16, "layers_per_block": 2},
    },
    "attention_at_every_level": {
        "unet": {
            "block_out_channels": (16, 32),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 2),
            "layers_per_block": 1,
        },
    },
    "deep_transformers": {
        "unet": {
            "block_out_channels": (16, 32, 48),
            "transformer_layers_per_block": (1, 2, 4),
            "attention_head_dim": (1, 4, 6),
        },
        "text": {"num_hidden_layers": 5},
        "text_2": {"num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4},
    },
    "refiner": {
        "refiner": True,
        "unet": {
            "block_out_channels": (16, 32, 48, 48),
            "down_block_types": (
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ),
            "up_block_types": (
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "UpBlock2D",
            ),
            "transformer_layers_per_block": 2,
            "attention_head_dim": (1, 2, 3, 3),
        },
    },
    "inpainting": {"unet": {"in_channels": 9}},
    "current_eos": {
        "text": {"eos_token_id": EOS, "bos_token_id": EOS - 1, "projection_dim": 16},
        "text_2": {"eos_token_id": EOS, "bos_token_id": EOS - 1, "projection_dim": 48},
    },
    "convolutional_projections": {
        "unet": {"use_linear_projection": False, "flip_sin_to_cos": False, "freq_shift": 1},
        "vae": {"use_quant_conv": False, "use_post_quant_conv": False},
    },
    "no_mid_attention": {  # as Segmind's SSD-1B
        "unet": {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [3, 1]],
            "reverse_transformer_layers_per_block": [[3, 1, 1], [2, 1, 1], 1],
        },
        "vae": {"mid_block_add_attention": False},
    },
}


def make_checkpoint(
    folder: Path,
    *,
    unet: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    text_2: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    refiner: bool = False,
    dtype: torch.dtype = torch.float16,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    seed: int = 0,
) -> Path:
    """Write a tiny SDXL checkpoint in diffusers' layout into `folder` and return it.

    Args:
        unet, vae, text, text_2, scheduler: what to change in the configs above. The widths that
            must agree with the text encoders follow from them.
        refiner: only text encoder 2, and five time ids.
        dtype: of the saved weights.
        variant, max_shard_size: as `save_pretrained` takes them.
        seed: of the weights.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = Path(folder)
    encoders = {
        "text_encoder": (CLIPTextModel, {**TEXT, **(text or {})}),
        "text_encoder_2": (CLIPTextModelWithProjection, {**TEXT_2, **(text_2 or {})}),
    }
    if refiner:
        del encoders["text_encoder"]
    embeds = encoders["text_encoder_2"][1]["projection_dim"]
    unet_config = {
        **UNET,
        "cross_attention_dim": sum(config["hidden_size"] for _, config in encoders.values()),
        **(unet or {}),
    }
    unet_config["projection_class_embeddings_input_dim"] = (
        embeds + (5 if refiner else 6) * unet_config["addition_time_embed_dim"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models: dict[str, nn.Module] = {
            name: kind(CLIPTextConfig(vocab_size=EOS + 1, **config))
            for name, (kind, config) in encoders.items()
        }
        models["unet"] = UNet2DConditionModel(**unet_config)
        models["vae"] = AutoencoderKL(**{**VAE, **(vae or {})})
        for model in models.values():
            make_trained(model)
    with quiet():
        for name, model in models.items():
            model.to(dtype).save_pretrained(  # type: ignore[operator]
                folder / name, variant=variant, max_shard_size=max_shard_size
            )
    for name in encoders:
        pad = "!" if name == "text_encoder_2" else "<|endoftext|>"
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"), pad)
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **(scheduler or {})})
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline"
        if refiner
        else "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{name: ["transformers", kind.__name__] for name, (kind, _) in encoders.items()},
        **({"text_encoder": [None, None], "requires_aesthetics_score": True} if refiner else {}),
    }
    write_json(folder / "model_index.json", index)
    return folder


def write_component(
    path: Path,
    checkpoint: Checkpoint,
    component: str,
    *,
    size: tuple[int, int] = (64, 96),
    attention: str = "original",
    deployment: DeploymentTarget = "macOS14",
    bits: str = "16",
    vae_dtype: type = np.float32,
) -> Path:
    """Convert one component into the package `path`: UNet and text encoders fp16, the VAE fp32.

    Args:
        size: (width, height) of the image in pixels.
        bits: of the weights that can be compressed.
        vae_dtype: of the VAE instead.
    """

    from convert.networks.build import build_network
    from convert.weights.compress import Compression

    spec = COMPONENTS[component]
    network = build_network(
        checkpoint,
        component,
        resolution=Resolution(*size),
        attention=attention,
        dtype=vae_dtype if component.startswith("vae") else np.float16,
        deployment=deployment,
        compression=Compression.uniform(checkpoint.component_tensors(component), bits),
    )
    about = Description("a test", "nobody", "none", "1", *spec.texts)
    write_package(path, network, about, format=FORMATS[deployment])
    return path


def edit_checkpoint(
    base: Checkpoint,
    folder: Path,
    part: str,
    change: Callable[[dict[str, torch.Tensor]], Any] = lambda _: None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A copy of the checkpoint with other weights or another config."""
    path = Path(shutil.copytree(base.path, folder / "edited"))
    from safetensors.torch import load_file, save_file

    (file,) = (path / part).glob("*.safetensors")
    # transformers has written CLIP's names with and without this prefix
    weights = {k.removeprefix("text_model."): v for k, v in load_file(file).items()}
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, file, {"format": "pt"})
    settings = json.loads((path / part / "config.json").read_text())
    (path / part / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    return open_checkpoint(path)


@torch.no_grad()
def make_trained(model: nn.Module) -> None:
    """Give every parameter the look of a trained one: no scale of 1, no bias of 0.

    Freshly made networks hide mistakes: a norm's affine does nothing, a missing bias is no loss.
    """
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.copy_(1 + 0.2 * torch.randn_like(module.weight))
            module.bias.copy_(0.2 * torch.randn_like(module.bias))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            scale = module.weight[0].numel() ** -0.5
            module.weight.copy_(scale * torch.randn_like(module.weight))
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn_like(module.bias))
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(0.3 * torch.randn_like(module.weight))


def write_tokenizer(folder: Path, pad: str) -> None:
    """The files of a CLIP tokenizer as SDXL repos hold them, with a small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = byte_letters()
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in MERGES),
        start,
        end,
    ]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", "utf-8")
    config = {
        "add_prefix_space": False,
        "bos_token": start,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    }
    write_json(folder / "tokenizer_config.json", config)
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    write_json(folder / "special_tokens_map.json", special)


def byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's and CLIP's vocabularies, printable first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
