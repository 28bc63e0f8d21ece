"""Embeddings (textual inversions) as the trainers and programs that there are write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint


def vectors(checkpoint: Checkpoint, count: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Vectors for each text encoder, as large as a checkpoint's own."""
    generator = torch.Generator().manual_seed(seed)
    widths = {n: part.config["hidden_size"] for n, part in checkpoint.parts.items() if "text" in n}
    return {n: 0.3 * torch.randn(count, w, generator=generator) for n, w in widths.items()}


def write_embedding(file: Path, found: Mapping[str, Tensor]) -> Path:
    """As kohya, ComfyUI and diffusers' training scripts write it: `clip_l` and `clip_g`."""
    keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    save_file({keys[name]: value for name, value in found.items()}, file)
    return file


def _pickled(keys: tuple[str, str], **more: Any) -> Callable[[Path, Mapping[str, Tensor]], Path]:
    def write(file: Path, found: Mapping[str, Tensor]) -> Path:
        torch.save({**dict(zip(keys, found.values(), strict=True)), **more}, file)
        return file

    return write


def _half(file: Path, found: Mapping[str, Tensor]) -> Path:
    return write_embedding(file, {name: value.half() for name, value in found.items()})


def _pivotal(file: Path, found: Mapping[str, Tensor]) -> Path:
    save_file({f"text_encoders_{n}": value for n, value in enumerate(found.values())}, file)
    return file


def _bundled(file: Path, found: Mapping[str, Tensor]) -> Path:
    """Inside a LoRA."""
    sides = zip(("clip_l", "clip_g"), found.values(), strict=True)
    lora = {f"lora_unet_mid.lora_{n}.weight": torch.zeros(1, 1) for n in ("up", "down")}
    save_file({f"bundle_emb.{file.stem}.{side}": v for side, v in sides} | lora, file)
    return file


def _two_files(file: Path, found: Mapping[str, Tensor]) -> Path:
    """diffusers' `textual_inversion_sdxl.py`; `file` is the first."""
    for path, value in zip((file, file.with_stem(f"{file.stem}_2")), found.values(), strict=True):
        save_file({f"<{file.stem}>": value}, path)
    return file


# name → the file's ending, and what writes it
FORMATS: dict[str, tuple[str, Callable[[Path, Mapping[str, Tensor]], Path]]] = {
    "kohya": (".safetensors", write_embedding),
    "float16": (".safetensors", _half),
    "pickle": (".pt", _pickled(("clip_l", "clip_g"))),
    "pickle with a trainer's facts": (".bin", _pickled(("clip_l", "clip_g"), step=900, name="x")),
    "pivotal tuning": (".safetensors", _pivotal),
    "inside a LoRA": (".safetensors", _bundled),
    "diffusers, two files": (".safetensors", _two_files),
}
