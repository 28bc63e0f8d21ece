"""What a LoRA is made for, where it does not fit: told by its modules' names and widths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from convert.lora.adapter import LoraAdapter

_NAMES = {
    "Flux": r"(^|[._])(double|single)_blocks[._]\d|single_transformer_blocks",
    "Stable Diffusion 3": r"joint_blocks|^(transformer\.|lora_transformer_)transformer_blocks",
    "Wan, or another transformer for video": r"^(diffusion_model\.|lora_unet_|transformer\.)?"
    r"(blocks|layers)[._]\d",
    "a language model": r"(^|\.)model\.layers\.\d|^base_model\.model\.(transformer|gpt_neox)",
}
# What cross-attention gets of the text encoders, in columns of `attn2`'s keys and values.
WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "SDXL's base",
    1280: "SDXL's refiner",
}
_VERSIONS = {"sd_v1": WIDTHS[768], "sd_1": WIDTHS[768], "sd_v2": WIDTHS[1024]}


def made_for(
    adapters: Sequence[LoraAdapter], facts: Mapping[str, str], width: object
) -> str | None:
    """What a LoRA is made for if that is not a UNet whose text is `width` wide; else None."""
    for family, pattern in _NAMES.items():
        if any(re.search(pattern, adapter.module) for adapter in adapters):
            return family
    for adapter in adapters:
        if re.search(r"attn2[._](processor[._])?to_[kv]$", adapter.module):
            found = adapter.sizes("down")[1] or adapter.sizes("hada_w1_b")[1]
            if found and found != width:
                return WIDTHS.get(found, f"a UNet whose text is {found} wide")
    version = facts.get("ss_base_model_version", "")
    return next((name for mark, name in _VERSIONS.items() if version.startswith(mark)), None)
