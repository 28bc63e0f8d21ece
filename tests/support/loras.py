"""LoRA files of every kind and spelling, for any tiny checkpoint.

`tensors_of(kind, shape)` makes a module's tensors under the names that its trainers give them,
`SPELLINGS` names modules, `write_lora(file, modules)` writes them down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]  # suffix → value
RANK, ALPHA = 4, 2.5

# The UNet of the shape `base` in sgm's numbering, level by level.
SGM = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.resnets.1": "input_blocks.2.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0": "input_blocks.4.0",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0": "input_blocks.7.0",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.resnets.1": "input_blocks.8.0",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.resnets.2": "output_blocks.2.0",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.3.0",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.6.0",
    "up_blocks.2.resnets.1": "output_blocks.7.0",
    "up_blocks.2.resnets.2": "output_blocks.8.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def sgm(module: str) -> str:
    """A module of the shape `base`'s UNet, as the sgm code calls it."""
    start = max((s for s in SGM if f"{module}.".startswith(f"{s}.")), key=len)
    rest = module.removeprefix(start)
    if ".resnets." in f".{start}.":
        rest = "".join(f".{_RESNET[part]}" for part in rest.split(".") if part)
    return SGM[start] + rest


def flat(name: str) -> str:
    return name.replace(".", "_")


# spelling → what it calls a module of the UNet
SPELLINGS: dict[str, Callable[[str], str]] = {
    "kohya, diffusers names": lambda name: f"lora_unet_{flat(name)}",
    "kohya, sgm names": lambda name: f"lora_unet_{flat(sgm(name))}",
    "SimpleTuner": lambda name: f"lycoris_{flat(name)}",
    "diffusers": lambda name: f"unet.{name}",
    "bare": lambda name: name,
    "ComfyUI": lambda name: f"diffusion_model.{sgm(name)}",
    "PEFT": lambda name: f"base_model.model.{name}",
}
# spelling → what it calls a module of text encoder 1 or 2 (without `text_model.`)
TEXT_SPELLINGS: dict[str, Callable[[int, str], str]] = {
    "kohya": lambda n, name: f"lora_te{n}_{flat(_text(name))}",
    "kohya without text_model": lambda n, name: f"lora_te{n}_{flat(name)}",
    "diffusers": lambda n, name: f"text_encoder{'_2' * (n == 2)}.{_text(name)}",
    "diffusers without text_model": lambda n, name: f"text_encoder{'_2' * (n == 2)}.{name}",
    "ComfyUI": lambda n, name: f"text_encoders.clip_{'lg'[n - 1]}.transformer.{_text(name)}",
}
# spelling → the suffixes of a plain LoRA: up, down
PAIRS = {
    "kohya": (".lora_up.weight", ".lora_down.weight"),
    "PEFT": (".lora_B.weight", ".lora_A.weight"),
    "PEFT with the adapter's name": (".lora_B.default.weight", ".lora_A.default.weight"),
    "diffusers 0.20": (".lora.up.weight", ".lora.down.weight"),
    "diffusers 0.17": (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
}


def _text(name: str) -> str:
    return name if name == "text_projection" else f"text_model.{name}"


def processor(name: str) -> str:
    """A projection of an attention as diffusers' first LoRAs call it, before `_lora.up.weight`."""
    return re.sub(r"(attn[12])\.(to_[qkv]|to_out)(\.0)?$", r"\1.processor.\2", name)


def tensors_of(
    kind: str, shape: tuple[int, ...], seed: int = 0, rank: int = RANK, alpha: float = ALPHA
) -> Tensors:
    """A module's tensors of one kind (a name of `MAKERS`), of the size of trained ones."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(size, generator=generator) * scale

    return MAKERS[kind](random, shape, rank, alpha)


Random = Callable[..., torch.Tensor]
Maker = Callable[[Random, tuple[int, ...], int, float], Tensors]


def _lora(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
    return {
        ".lora_up.weight": random(shape[0], rank, *(1,) * (len(shape) - 2)),
        ".lora_down.weight": random(rank, *shape[1:]),
        ".alpha": torch.tensor(alpha),
    }


def _tucker(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
    return {
        ".lora_up.weight": random(shape[0], rank, 1, 1),
        ".lora_mid.weight": random(rank, rank, *shape[2:]),
        ".lora_down.weight": random(rank, shape[1], 1, 1),
        ".alpha": torch.tensor(alpha),
    }


def _dora(of_outputs: bool, make: str) -> Maker:
    def made(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
        size = (shape[0], 1) if of_outputs else (1, shape[1])
        magnitude = random(*size, *(1,) * (len(shape) - 2)).abs() + 0.8
        return {**MAKERS[make](random, shape, rank, alpha), ".dora_scale": magnitude}

    return made


def _loha(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
    columns = _product(shape[1:])
    made = {
        f".hada_w{n}_{role}": random(*size)
        for n in (1, 2)
        for role, size in {"a": (shape[0], rank), "b": (rank, columns)}.items()
    }
    return {**made, ".alpha": torch.tensor(alpha)}


def _loha_tucker(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
    made = {}
    for n in (1, 2):
        made[f".hada_t{n}"] = random(rank, rank, *shape[2:])
        made[f".hada_w{n}_a"] = random(rank, shape[0])
        made[f".hada_w{n}_b"] = random(rank, shape[1])
    return {**made, ".alpha": torch.tensor(alpha)}


def _lokr(one: str, other: str) -> Maker:
    def made(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
        a, c, (o, i, *kernel) = 4, 2, shape
        b, d = o // a, i // c
        found = {".alpha": torch.tensor(1e10 if (one, other) == ("whole", "whole") else alpha)}
        if one == "whole":
            found[".lokr_w1"] = random(a, c)
        else:
            found |= {".lokr_w1_a": random(a, rank), ".lokr_w1_b": random(rank, c)}
        if other == "whole":
            found[".lokr_w2"] = random(b, d, *kernel)
        elif other == "tucker":
            found[".lokr_t2"] = random(rank, rank, *kernel)
            found |= {".lokr_w2_a": random(rank, b), ".lokr_w2_b": random(rank, d)}
        else:
            width = (d, *kernel) if other == "open" else (d * _product(tuple(kernel)),)
            found |= {".lokr_w2_a": random(b, rank), ".lokr_w2_b": random(rank, *width)}
        return found

    return made


def _ia3(on_input: int) -> Maker:
    def made(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
        width = shape[1] if on_input else shape[0]
        size = (1, width, 1, 1) if len(shape) == 4 else (width,)
        return {".weight": random(*size), ".on_input": torch.tensor(on_input)}

    return made


def _glora(random: Random, shape: tuple[int, ...], rank: int, alpha: float) -> Tensors:
    ones = (1,) * (len(shape) - 2)
    return {
        ".a1.weight": random(shape[1], rank, *ones),
        ".a2.weight": random(rank, shape[1], *ones),
        ".b1.weight": random(shape[0], rank, *ones),
        ".b2.weight": random(rank, *shape[1:]),
        ".alpha": torch.tensor(alpha),
    }


def _oft(rescaled: bool, alpha: float) -> Maker:
    def made(random: Random, shape: tuple[int, ...], rank: int, _: float) -> Tensors:
        found = {".oft_blocks": random(shape[0] // 4, 4, 4), ".alpha": torch.tensor(alpha)}
        if rescaled:
            found[".rescale"] = 1 + random(shape[0], *(1,) * (len(shape) - 1))
        return found

    return made


def _boft(rescaled: bool) -> Maker:
    def made(random: Random, shape: tuple[int, ...], rank: int, _: float) -> Tensors:
        blocks = shape[0] // 4
        stages = bin(blocks - 1).count("1") + 1
        found = {".oft_blocks": random(stages, blocks, 4, 4), ".alpha": torch.tensor(0.0)}
        if rescaled:
            found[".rescale"] = 1 + random(shape[0], *(1,) * (len(shape) - 1))
        return found

    return made


def _whole(suffix: str) -> Maker:
    return lambda random, shape, rank, alpha: {suffix: random(*shape)}


def _product(sizes: tuple[int, ...]) -> int:
    return int(torch.tensor(sizes).prod()) if sizes else 1


MAKERS: Mapping[str, Maker] = {
    "LoRA": _lora,
    "LoCon, Tucker": _tucker,
    "DoRA of outputs": _dora(True, "LoRA"),
    "DoRA of inputs": _dora(False, "LoRA"),
    "LoHa": _loha,
    "LoHa, Tucker": _loha_tucker,
    "LoHa, DoRA": _dora(True, "LoHa"),
    **{
        f"LoKr, {one} ⊗ {other}": _lokr(one, other)
        for one in ("whole", "parts")
        for other in ("whole", "parts", "open", "tucker")
    },
    "LoKr, DoRA": _dora(False, "LoKr, whole ⊗ parts"),
    "(IA)³ of outputs": _ia3(0),
    "(IA)³ of inputs": _ia3(1),
    "GLoRA": _glora,
    "OFT": _oft(False, 0.0),
    "OFT, constrained": _oft(False, 0.01),
    "OFT, rescaled": _oft(True, 0.0),
    "BOFT": _boft(False),
    "BOFT, rescaled": _boft(True),
    "difference": _whole(".diff"),
    "replacement": _whole(".set_weight"),
    "norm": _whole(".w_norm"),
}
NEEDS_KERNEL = {"LoCon, Tucker", "LoHa, Tucker", "LoKr, whole ⊗ tucker", "LoKr, parts ⊗ tucker"}


def write_lora(
    file: Path,
    modules: Mapping[str, Tensors],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write modules' tensors under their names; integers as they are, all else in `dtype`."""
    tensors = {
        name + suffix: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, found in modules.items()
        for suffix, value in found.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"format": "pt", **(metadata or {})})
    return file
