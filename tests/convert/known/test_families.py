"""Files of other families and kinds are refused by what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.checkpoint.layout import recognise
from convert.checkpoint.tensors import StoredTensor, Tensor
from convert.errors import InputError
from tests.support.loras import MAKERS, NEEDS_KERNEL, tensors_of

UNET = "model.diffusion_model."
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SD 1": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
        },
        "Stable Diffusion 1, not SDXL",
    ),
    "SD 1 UNet": (
        {
            f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
            f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        "a UNet of Stable Diffusion 1, not SDXL",
    ),
    "SD 2 UNet in diffusers' names": (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        },
        "a UNet of Stable Diffusion 2, not SDXL",
    ),
    "SD 2": (
        {"cond_stage_model.model.ln_final.weight": (1024,)},
        "Stable Diffusion 2, not SDXL",
    ),
    "SD 3": (
        {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)},
        "Stable Diffusion 3, not SDXL",
    ),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux, not SDXL"),
    "Flux in diffusers' names": (
        {"single_transformer_blocks.0.attn.to_q.weight": (3072, 3072)},
        "Flux, not SDXL",
    ),
    "Wan": ({"blocks.0.cross_attn.k.weight": (1536, 1536)}, "Wan"),
    "LLM": ({"model.layers.0.mlp.gate_proj.weight": (11008, 4096)}, "a language model"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}, "a T5 text"),
    "ControlNet": ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "Playground": (
        {"edm_mean": (4,), "edm_std": (4,), f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)},
        "Playground v2.5",
    ),
    "CosXL": ({"edm_vpred.sigma_max": (), f"{UNET}out.0.weight": (320,)}, "CosXL"),
    "kohya LoRA": (
        {
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": (640, 8),
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (8, 640),
            "lora_unet_input_blocks_4_1_proj_in.alpha": (),
        },
        "a LoRA or one of its kin",
    ),
    "PEFT LoRA": (
        {"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": (8, 640)},
        "a LoRA or one of its kin",
    ),
    "LoHa": ({"lycoris_x.hada_w1_a": (4, 4), "lycoris_x.hada_w1_b": (4, 4)}, "a LoRA or one"),
    "LoKr": ({"lora_unet_x.lokr_w1": (4, 4), "lora_unet_x.lokr_w2": (4, 4)}, "a LoRA or one"),
    "embedding": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "a textual inversion"),
    "another VAE": ({"decoder.conv_in.weight": (512, 16, 3, 3)}, "a VAE of 16 latent channels"),
    "nothing known": ({"a.b": (2,)}, "no part of SDXL that is known by its tensors: `a.b`"),
    "nothing": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_by_what_they_are(name: str) -> None:
    shapes, problem = OTHERS[name]
    tensors: dict[str, Tensor] = {
        n: StoredTensor(n, "F16", shape, Path("x"), 0) for n, shape in shapes.items()
    }
    with pytest.raises(InputError, match=problem) as error:
        recognise(tensors, Path("x.safetensors"))
    assert error.value.hint


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("module", ["lora_unet_middle_block_0_in_layers_2", "unet.conv_in"])
def test_a_lora_of_any_kind_is_called_one(kind: str, module: str) -> None:
    shape = (32, 32, 3, 3) if kind in NEEDS_KERNEL else (32, 32)
    tensors: dict[str, Tensor] = {
        f"{module}{n}": StoredTensor(f"{module}{n}", "F16", tuple(value.shape), Path("x"), 0)
        for n, value in tensors_of(kind, shape).items()
    }
    with pytest.raises(InputError, match="is a LoRA or one of its kin, no checkpoint"):
        recognise(tensors, Path("x.safetensors"))
