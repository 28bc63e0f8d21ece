"""How the tensors of LoRA files are called: a module's name, and one of these suffixes.

Sources: kohya-ss/sd-scripts, LyCORIS (`weight_list` of its modules), diffusers
(`utils/state_dict_utils.py`), peft, and ComfyUI, whose `comfy/weight_adapter` reads most of them.
"""

from __future__ import annotations

# suffix → what the tensor is to its module, whoever has spelled it
ROLES = {
    **dict.fromkeys(
        (
            ".lora_up.weight",
            ".lora_B.weight",
            ".lora_B.default.weight",
            ".lora.up.weight",
            ".lora_linear_layer.up.weight",
            "_lora.up.weight",
        ),
        "up",
    ),
    **dict.fromkeys(
        (
            ".lora_down.weight",
            ".lora_A.weight",
            ".lora_A.default.weight",
            ".lora.down.weight",
            ".lora_linear_layer.down.weight",
            "_lora.down.weight",
        ),
        "down",
    ),
    ".lora_mid.weight": "mid",
    ".lora_B.bias": "bias",
    ".lora_B.default.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".alpha": "alpha",
    ".weight": "factors",
    **{
        f".{name}": name
        for name in (
            *("dora_scale", "scale", "dyn_dim"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
            *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("oft_blocks", "rescale", "on_input"),
            *("diff", "diff_b", "set_weight", "w_norm", "b_norm"),
        )
    },
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
}
# suffix → what it belongs to, which is none of our kinds
REFUSED = {
    ".reshape_weight": "a LoRA that gives the weight another shape",
    ".oft_R.weight": "PEFT's OFT",
    ".oft_R.default.weight": "PEFT's OFT",
    ".boft_R": "PEFT's BOFT",
    ".boft_s": "PEFT's BOFT",
    ".lora_embedding_A": "PEFT's LoRA of an embedding",
    ".lora_embedding_B": "PEFT's LoRA of an embedding",
}
_LONGEST_FIRST = sorted((*ROLES, *REFUSED), key=len, reverse=True)
NOT_APPLIED = ("scale", "dyn_dim")  # only stable-diffusion-webui reads them


def split(key: str) -> tuple[str, str] | None:
    """The module's name in a key and the suffix after it; None if it has none that we know.

    >>> split("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', '.lora_up.weight')
    """
    for suffix in _LONGEST_FIRST:
        if key.endswith(suffix) and len(key) > len(suffix):
            return key.removesuffix(suffix), suffix
    return None
