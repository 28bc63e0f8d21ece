"""What LoRA files call the modules of a checkpoint: a table from the checkpoint itself.

A name with underscores for dots cannot be taken apart again, so nobody tries: every module's names
are written down, and a LoRA's are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.keys import UNetBlocks, unet_keys


class NamedModule(NamedTuple):
    """A module of the checkpoint."""

    part: str  # unet, text_encoder, text_encoder_2
    name: str  # in diffusers or transformers; its tensors are `name.weight` and `name.bias`


def module_names(checkpoint: Checkpoint) -> dict[str, NamedModule]:
    """All names that a LoRA file may have for the checkpoint's modules.

    A name that two modules would have is nobody's.
    """
    found: dict[str, NamedModule | None] = {}
    for module, name in _names(checkpoint):
        if found.setdefault(name, module) != module:
            found[name] = None
    return {name: module for name, module in found.items() if module is not None}


def modules(checkpoint: Checkpoint, part: str) -> list[str]:
    """The modules of a part that have a weight, in its order."""
    if part not in checkpoint.parts:
        return []
    names = checkpoint.parts[part].tensors
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def _names(checkpoint: Checkpoint) -> Iterator[tuple[NamedModule, str]]:
    ldm = unet_keys(UNetBlocks.of(checkpoint.unet))
    for name in modules(checkpoint, "unet"):
        module = NamedModule("unet", name)
        yield from ((module, alias) for alias in _unet_names(name, ldm.ldm(name) or name))
    is_refiner = "text_encoder" not in checkpoint.parts
    for part in ("text_encoder", "text_encoder_2"):
        for name in modules(checkpoint, part):
            module = NamedModule(part, name)
            yield from ((module, alias) for alias in _text_names(part, name, is_refiner=is_refiner))


def _unet_names(name: str, ldm: str) -> Iterator[str]:
    flat = name.replace(".", "_")
    yield f"lora_unet_{flat}"
    yield f"lora_unet_{ldm.replace('.', '_')}"
    yield f"lycoris_{flat}"  # SimpleTuner
    yield f"diffusion_model.{ldm}"  # ComfyUI
    yield f"base_model.model.{name}"  # PEFT
    for prefix in ("", "unet."):
        yield prefix + name
        old = re.fullmatch(r"(.*\.attn[12])\.(to_[qkv]|to_out)(\.0)?", name)
        if old:  # of diffusers' attention processors: `attn1.processor.to_q_lora.up.weight`
            yield f"{prefix}{old[1]}.processor.{old[2]}"


_OLD_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _text_names(part: str, name: str, *, is_refiner: bool) -> Iterator[str]:
    number, clip = ("1", "clip_l") if part == "text_encoder" else ("2", "clip_g")
    spellings = [name]
    if name != "text_projection":
        spellings.append(f"text_model.{name}")
    for spelled in spellings:
        flat = spelled.replace(".", "_")
        yield f"lora_te{number}_{flat}"
        if part == "text_encoder" or is_refiner:
            yield f"lora_te_{flat}"
        yield f"text_encoders.{clip}.transformer.{spelled}"  # ComfyUI
        yield f"{part}.{spelled}"
        old = re.fullmatch(r"(.*\.self_attn)\.([qkv]_proj|out_proj)", spelled)
        if old:  # `self_attn.to_q_lora.up.weight`
            yield f"{part}.{old[1]}.{_OLD_PROJECTIONS[old[2]]}"
