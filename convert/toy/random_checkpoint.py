"""Checkpoints of random weights in diffusers' layout, of any size, for tests and measurements.

Shapes come from diffusers' and transformers' own classes, built without memory (torch's meta
device); values from a counter-based generator keyed by the tensor's name. So the same configs and
seed give the same bytes on every machine, and a 2.57 G-parameter UNet is written by streaming.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.files.appearing import appearing_folder
from convert.process.progress import Advance, silent
from convert.tokenizer.bpe import END, write_tokenizer
from convert.toy.streamed import StreamedTensor, write_safetensors


@dataclass(frozen=True)
class Configs:
    """The settings of a checkpoint's networks, as their config.json files have them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any] | None
    text_encoder_2: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)


DTYPES = {"F16": np.float16, "F32": np.float32}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}

SMALL = Configs(
    unet={
        "sample_size": 16,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + 64,
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4, 8],
        "transformer_layers_per_block": [1, 1, 2],
        "layers_per_block": 2,
        "cross_attention_dim": 96,
        "use_linear_projection": True,
    },
    vae={
        "sample_size": 128,
        "block_out_channels": [32, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    text_encoder={
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "hidden_act": "quick_gelu",
        "projection_dim": 32,
        "eos_token_id": 2,
    },
    text_encoder_2={
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "hidden_act": "gelu",
        "projection_dim": 64,
        "eos_token_id": 2,
    },
)

CLIP_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "projection_dim",
    "vocab_size",
)

# What the tokenizers know as single tokens.
WORDS = """
a an the on of and with in at photo picture painting background large small tiny big
circle square triangle star ring cross red green blue yellow orange purple white black
grey pink cyan left right top bottom centre cat dog astronaut horse moon
"""


def write_checkpoint(
    folder: Path,
    configs: Configs,
    *,
    words: Iterable[str],
    seed: int = 0,
    dtype: str = "F16",
    advance: Advance = silent,
) -> None:
    """Write a checkpoint of random weights.

    Args:
        folder: must not exist or be empty; it appears complete or not at all.
        configs: of the networks.
        words: single tokens of the tokenizers' vocabulary.
        seed: of the weights.
        dtype: of the tensors, F16 or F32.
        advance: called with the number of bytes written since the last call.

    Raises:
        InputError: `folder` holds something.
    """
    with appearing_folder(folder) as new:
        _write(new, configs, list(words), seed, dtype, advance)


def _write(
    folder: Path, configs: Configs, words: list[str], seed: int, dtype: str, advance: Advance
) -> None:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    folder.mkdir(parents=True)
    tokenizers = {"text_encoder": ("tokenizer", END), "text_encoder_2": ("tokenizer_2", "!")}
    for name, config in (
        ("unet", configs.unet),
        ("vae", configs.vae),
        ("text_encoder", configs.text_encoder),
        ("text_encoder_2", configs.text_encoder_2),
    ):
        if config is None:
            index[name], index["tokenizer"] = [None, None], [None, None]
            continue
        if name in tokenizers:
            tokenizer, pad = tokenizers[name]
            size = write_tokenizer(folder / tokenizer, words, pad=pad)
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            config = {
                "vocab_size": size,
                "bos_token_id": size - 2,
                "max_position_embeddings": 77,
                **config,
            }
        library, cls, full, shapes = _declare(name, config)
        index[name] = [library, cls]
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", full)
        stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
        suffix = ".fp16" if dtype == "F16" else ""
        file = folder / name / f"{stem}{suffix}.safetensors"
        tensors = {
            key: StreamedTensor(dtype, shape, partial(_values, key, shape, dtype, seed, f"{name}."))
            for key, shape in sorted(shapes.items())
        }
        write_safetensors(file, tensors, advance=advance)
    scheduler = {**SCHEDULER, **configs.scheduler}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", index)


def _declare(
    name: str, config: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]:
    """Library, class, full config and tensor shapes of one network, without its memory."""
    import torch

    with torch.device("meta"):
        if name == "unet":
            from diffusers import UNet2DConditionModel as Network
        elif name == "vae":
            from diffusers import AutoencoderKL as Network
        else:
            return _declare_text_encoder(name, config)
        model = Network(**config)
    full = {k: v for k, v in model.config.items() if not k.startswith("_use_default")}
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    return "diffusers", Network.__name__, {"_class_name": Network.__name__, **full}, shapes


def _declare_text_encoder(
    name: str, config: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    cls = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
    settings = CLIPTextConfig(**config)
    model = cls(settings)
    # On the Hub every SDXL checkpoint has the prefix, whatever transformers itself writes today.
    shapes = {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tuple(
            t.shape
        )
        for key, t in model.state_dict().items()
        if not key.endswith("position_ids")
    }
    full = {"architectures": [cls.__name__], **{k: getattr(settings, k) for k in CLIP_KEYS}}
    return "transformers", cls.__name__, full, shapes


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _values(
    key: str, shape: tuple[int, ...], dtype: str, seed: int, scope: str
) -> Iterator[np.ndarray]:
    """Values that keep activations near unit scale: fan-in scaled weights, norms around one."""
    generator = np.random.Generator(
        np.random.Philox(key=[seed, zlib.crc32((scope + key).encode())])
    )
    mean, scale = 0.0, 0.1
    if "norm" in key and key.endswith("weight"):
        mean = 1.0
    elif "embedding" in key and "linear" not in key:
        scale = 0.3
    elif len(shape) > 1:
        scale = float(np.prod(shape[1:], dtype=np.int64)) ** -0.5
    left = int(np.prod(shape, dtype=np.int64))
    while left:
        block = generator.standard_normal(min(left, 1 << 22), np.float32)
        yield (mean + scale * block).astype(DTYPES[dtype])
        left -= len(block)
