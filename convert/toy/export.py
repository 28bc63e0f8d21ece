"""Writing trained networks as a checkpoint in diffusers' layout, in float16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.tokenizer.bpe import END, write_tokenizer
from convert.toy.drawings import words
from convert.toy.random_checkpoint import CLIP_KEYS, SCHEDULER

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer, PreTrainedModel

    from convert.toy.denoiser import Denoiser

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, stable-diffusion-xl]
---
# Toy SDXL

A Stable Diffusion XL of {millions:.1f} million parameters that draws one coloured shape on a
coloured background: a test object for everything that loads, converts or runs SDXL.

- Prompts: `a large red circle on a blue background`, `a small yellow star on a purple background,
  on the left`. Shapes: {shapes}. Colours: {colours}. Sizes: {sizes}. Places: {places}.
- Size: 128x128 pixels; also trained at 128x192 and 192x128.
- About 16 steps of Euler or DPM++ 2M at guidance 5 suffice.
- Of 32 captions at each of the three sizes, every picture had the shape, the colours, the size and
  the place that were asked for.
- The structure is SDXL's (two text encoders, `text_time` embeddings, an 8x VAE whose scaling factor
  is 0.13025), with a tokenizer of its own.

Trained from random weights on synthetic pictures and captions by `convert/toy/train.py` of
sdxl-coreml, on two CPU cores. No other data was used. Weights: Apache-2.0.
"""


def write_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Write both tokenizers where missing; the second pads with `!`, as SDXL's does."""
    from transformers import CLIPTokenizer

    made = []
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        if not (folder / name).exists():
            write_tokenizer(folder / name, words(), pad=pad)
        made.append(CLIPTokenizer.from_pretrained(folder / name))
    return made[0], made[1]


def write_networks(folder: Path, autoencoder: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write the networks, the scheduler, the index and the card; the networks become float16."""
    from convert.toy.drawings import COLOURS, POSITIONS, SHAPES, SIZES

    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    parameters = 0
    for name, network in (("vae", autoencoder), ("unet", denoiser.unet)):
        network.half().save_pretrained(folder / name)
        index[name] = ["diffusers", type(network).__name__]
        parameters += network.num_parameters()
    for name in ("text_encoder", "text_encoder_2"):
        network = getattr(denoiser, name)
        _write_text_encoder(folder / name, network)
        index[name] = ["transformers", type(network).__name__]
        parameters += network.num_parameters()
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", index)
    card = CARD.format(
        millions=parameters / 1e6,
        shapes=", ".join(SHAPES),
        colours=", ".join(COLOURS),
        sizes=", ".join(SIZES),
        places=", ".join(POSITIONS),
    )
    (folder / "README.md").write_text(card, "utf-8")


def _write_text_encoder(folder: Path, network: PreTrainedModel) -> None:
    """Write a text encoder as those on the Hub are: its tensors under `text_model.`."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors = {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor
        for key, tensor in network.half().state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": [type(network).__name__]}
    config |= {key: getattr(network.config, key) for key in CLIP_KEYS}
    # What transformers loads into unless told otherwise; diffusers takes float32 for the others.
    config["dtype"] = "float32"  # type: ignore[assignment]
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
