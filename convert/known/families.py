"""What is no checkpoint of SDXL, told by the names of tensors; each has one sentence.

Sources: ComfyUI `comfy/model_detection.py` and `supported_models.py`, the LoRA formats of kohya,
diffusers, PEFT and LyCORIS, and the libraries' own models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Other(NamedTuple):
    """Something else: what it is, how it is told, and what to do."""

    what: str
    sign: str  # the tensor that tells
    hint: str


SDXL_ONLY = "This tool converts the SDXL family: base, refiner, inpainting and fine-tunes."
_ADAPTER = "It belongs on top of a checkpoint: give that as the source, and this with `loras`."
_NO_APP = "No app on Apple's systems can draw with it."

_LORA = re.compile(
    r"\.(lora_(up|down|mid|A|B|linear_layer)\b|lora\.(up|down)\b|hada_w|lokr_w|dora_scale$|"
    r"oft_(blocks|R)\b|on_input$|lora_magnitude_vector|(a1|a2|b1|b2|bm)\.weight$|rescale$|alpha$|"
    r"(diff|diff_b|set_weight|w_norm|b_norm)$)|_lora\.(up|down)\."
)
TINY = "A whole VAE is needed, such as madebyollin/sdxl-vae-fp16-fix."
_CONTROL = "It steers a UNet and is none: give the checkpoint."
_SIGNS: tuple[tuple[str, str, str], ...] = (
    (r"edm_(mean|std)$", "Playground v2.5 (EDM's noise, its own scale of latents)", _NO_APP),
    (r"edm_vpred\.sigma_(max|min)$", "CosXL (continuous v-prediction in EDM's noise)", _NO_APP),
    (r"(.*\.)?joint_blocks\.\d+\.", "Stable Diffusion 3", SDXL_ONLY),
    (r"(.*\.)?double_blocks\.\d+\.|(.*\.)?single_transformer_blocks\.\d+\.", "Flux", SDXL_ONLY),
    (r"(.*\.)?blocks\.\d+\.cross_attn\.(q|k|v)\.", "Wan, which makes videos", SDXL_ONLY),
    (r"(.*\.)?time_stack\.", "Stable Video Diffusion", SDXL_ONLY),
    (r"control_model\.|(.*\.)?input_hint_block\.|controlnet_", "a ControlNet", _CONTROL),
    (r"ip_adapter[.:]|image_proj[.:]", "an IP-Adapter", _CONTROL),
    (
        r"(taesd\w*\.)?((en|de)coder\.layers\.)?\d+\.conv\.\d+\.weight$",
        "a tiny autoencoder (TAESDXL, of previews)",
        TINY,
    ),
    (r"(.*\.)?motion_modules\.", "a motion module of AnimateDiff", _CONTROL),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2", SDXL_ONLY),
    (r"cond_stage_model\.", "Stable Diffusion 1", SDXL_ONLY),
    (
        r"(.*\.)?layers\.\d+\.(mlp\.(gate|up)_proj|input_layernorm|feed_forward\.w1)\.|"
        r"(.*\.)?h\.\d+\.attn\.c_attn\.|lm_head\.",
        "a language model",
        SDXL_ONLY,
    ),
    (r"(.*\.)?encoder\.block\.\d+\.layer\.", "a T5 text encoder, of other models", SDXL_ONLY),
    (r"(.*\.)?vision_model\.|(.*\.)?visual\.", "a whole CLIP model", "Its text half is wanted."),
)
_EMBEDDING = re.compile(r"(clip_[lg]|emb_params|string_to_param(\..*)?|text_encoders_[01]|\*)$")


def other_family(shapes: Mapping[str, tuple[int, ...]]) -> Other | None:
    """What a file of these tensors is, if it is known and no part of SDXL."""
    loras = [name for name in shapes if _LORA.search(name)]
    if loras and 2 * len(loras) >= len(shapes):  # (IA)³ has one of two
        return Other("a LoRA or one of its kin, no checkpoint", loras[0], _ADAPTER)
    if shapes and all(map(_EMBEDDING.match, shapes)):
        hint = "It belongs on top of a checkpoint."
        return Other("a textual inversion, no checkpoint", next(iter(shapes)), hint)
    for pattern, what, hint in _SIGNS:
        if (sign := _first(shapes, pattern)) is not None:
            return Other(what, sign, hint)
    return _other_shapes(shapes)


def _other_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Other | None:
    """The same, where names are SDXL's and sizes are not."""
    sign = _first(shapes, r"(.*\.)?label_emb\.weight$")
    if sign is not None:
        return Other("Stable Diffusion's upscaler", sign, SDXL_ONLY)
    unet = _first(
        shapes, r"(model\.diffusion_model\.)?input_blocks\.0\.0\.weight$|conv_in\.weight$"
    )
    added = _first(shapes, r"(model\.diffusion_model\.label_emb|label_emb|add_embedding)\.")
    if unet is not None and added is None:
        context = _first(shapes, r".*attn2\.to_k\.weight$")
        width = shapes[context][-1] if context and shapes[context] else 0
        version = {768: " 1", 1024: " 2"}.get(width, " 1 or 2")
        return Other(f"a UNet of Stable Diffusion{version}", context or unet, SDXL_ONLY)
    latents = _first(shapes, r"(first_stage_model\.|vae\.)?decoder\.conv_in\.weight$")
    if latents is not None and shapes[latents][1:2] not in ((), (4,)) and unet is None:
        what = f"a VAE of {other_channels(shapes[latents][1])}, where SDXL has 4"
        return Other(what, latents, SDXL_ONLY)
    return None


def other_channels(count: int) -> str:
    """So many latent channels, and whose VAEs have them."""
    whose = {16: ", as Flux and Stable Diffusion 3 have", 32: ", as Sana and Flux 2 have"}
    return f"{count} latent channels{whose.get(count, '')}"


def _first(names: Iterable[str], pattern: str) -> str | None:
    matches = re.compile(pattern).match
    return next((name for name in names if matches(name)), None)
