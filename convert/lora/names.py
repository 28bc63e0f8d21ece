"""What LoRA files call the modules of a checkpoint: a table from the checkpoint itself.

A name with underscores for dots cannot be taken apart again, so nobody tries: every module's names
are written down, and a LoRA's are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from convert.checkpoint.checkpoint import Checkpoint


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
    unet = modules(checkpoint, "unet")
    ldm = ldm_names(unet)
    for name in unet:
        module = NamedModule("unet", name)
        yield from ((module, alias) for alias in _unet_names(name, ldm[name]))
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


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def ldm_names(unet: list[str]) -> Mapping[str, str]:
    """The modules of a UNet → their names in the sgm code that it was published with."""
    counted = {m[1] for name in unet if (m := re.match(r"(\w+_blocks\.\d+\.resnets\.\d+)\.", name))}
    first: dict[str, int] = {}  # the number of a block's first resnet among input or output blocks
    for kind, number in (("down_blocks", 1), ("up_blocks", 0)):
        block = 0
        while count := sum(c.startswith(f"{kind}.{block}.") for c in counted):
            first[f"{kind}.{block}"] = number
            number += count + (kind == "down_blocks")  # a downsampler has a number of its own
            first[f"{kind}.{block}.end"] = number - 1
            block += 1
    attentive = {m[1] for name in unet if (m := re.match(r"(up_blocks\.\d+)\.attentions\.", name))}

    def renamed(name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        at = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        if at:
            side, block = "input_blocks" if at[1] == "down_blocks" else "output_blocks", at[2]
            start, end = first[f"{at[1]}.{block}"], first[f"{at[1]}.{block}.end"]
            if at[3] == "resnets":
                return f"{side}.{start + int(at[4])}.0.{_resnet(at[5])}"
            if at[3] == "attentions":
                return f"{side}.{start + int(at[4])}.1.{at[5]}"
            if at[3] == "downsamplers":
                return f"{side}.{end}.0.op"
            return f"{side}.{end}.{2 if f'up_blocks.{block}' in attentive else 1}.conv"
        middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
        if middle and middle[1] == "resnets":
            return f"middle_block.{2 * int(middle[2])}.{_resnet(middle[3])}"
        return f"middle_block.1.{middle[3]}" if middle else name

    return {name: renamed(name) for name in unet}


def _resnet(inner: str) -> str:
    return _RESNET.get(inner, inner)
