"""A network's config from the shapes of its tensors, where a file holds tensors alone.

Shapes do not say everything: the number of heads, of norms' groups and the activation are taken
from a template, which is SDXL's own config or that of a checkpoint of the same widths. Where the
template has other widths, heads are of 64 channels, as in all of SDXL's family, and groups 32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]  # by diffusers' or transformers' names
ConfigValues = Mapping[str, Any]

HEAD = 64  # channels of an attention head
GROUPS = 32
BASE = "Give a checkpoint that it was made from as `base`, whose config.json says how it is built."


def fitted_unet(
    shapes: Shapes, template: ConfigValues, where: Path, *, projection: int, time_ids: int
) -> dict[str, Any]:
    """The config.json of a UNet with tensors of these shapes.

    Args:
        template: what shapes do not say.
        where: what errors name.
        projection: width of text encoder 2's pooled output.
        time_ids: how many the UNet is told: 6, or 5 for a refiner.

    Raises:
        InputError: a tensor is missing, or diffusers has no config for such a structure.
    """
    downs, ups = (_blocks(shapes, side, where) for side in ("down_blocks", "up_blocks"))
    channels = [_shape(shapes, f"{b}.resnets.0.conv1.weight", 4, where)[0] for b in downs]
    depths, up_depths = ([_depths(shapes, b) for b in side] for side in (downs, ups))
    mid = _depth(shapes, "mid_block.attentions.0")
    if not any(name.startswith("mid_block.") for name in shapes):
        raise InputError(
            "its UNet has no block in the middle, as KOALA-700M; this tool's networks have one",
            where=where,
        )
    _require_even(depths + up_depths, [*downs, *ups], where)
    conv_in = _shape(shapes, "conv_in.weight", 4, where)
    added = _shape(shapes, "add_embedding.linear_1.weight", 2, where)[1]
    found: dict[str, Any] = {
        "in_channels": conv_in[1],
        "out_channels": _shape(shapes, "conv_out.weight", 4, where)[0],
        "conv_in_kernel": conv_in[2],
        "block_out_channels": channels,
        "down_block_types": [f"{'CrossAttn' if any(d) else ''}DownBlock2D" for d in depths],
        "up_block_types": [f"{'CrossAttn' if any(d) else ''}UpBlock2D" for d in up_depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D",
        "layers_per_block": [len(d) for d in depths],
        "projection_class_embeddings_input_dim": added,
        "addition_time_embed_dim": _per_id(added, projection, time_ids, where),
        **_transformers(depths, up_depths, mid, template, where),
    }
    widths = {s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight")}
    if len(widths) == 1:
        found["cross_attention_dim"] = widths.pop()
    linear = {len(s) for name, s in shapes.items() if name.endswith("proj_in.weight")}
    if linear:
        found["use_linear_projection"] = 2 in linear
    conditioned = shapes.get("time_embedding.cond_proj.weight", ())
    if len(conditioned) == 2:  # of distilled models, which are told the guidance
        found["time_cond_proj_dim"] = conditioned[1]
    embedded = _shape(shapes, "time_embedding.linear_1.weight", 2, where)[0]
    if embedded != 4 * channels[0]:
        found["time_embedding_dim"] = embedded
    if channels != template.get("block_out_channels"):
        found["attention_head_dim"] = [
            _heads(width, "the UNet's blocks", where) if any(down) or any(up) else 1
            for width, down, up in zip(channels, depths, up_depths[::-1], strict=True)
        ]
        found["norm_num_groups"] = _groups(channels, "the UNet", where)
    return _merged(template, found)


def _transformers(
    depths: list[list[int]], ups: list[list[int]], mid: int, template: ConfigValues, where: Path
) -> dict[str, Any]:
    """The transformer layers, as diffusers' configs say them: by level, or one by one."""
    known = template.get("transformer_layers_per_block", 1)
    fill = known if isinstance(known, list) and len(known) == len(depths) else [1] * len(depths)
    fill = [known] * len(depths) if isinstance(known, int) else fill
    fill = [n if isinstance(n, int) else 1 for n in fill]
    levels = [d[0] if any(d) else n for d, n in zip(depths, fill, strict=True)]
    if mid and not any(depths[-1]):
        levels[-1] = mid
    if mid and levels[-1] != mid:
        raise InputError(
            f"the UNet's middle has {mid} transformer layers, the block before it {levels[-1]}; "
            "diffusers' configs have one number for both",
            where=where,
        )
    expected = [[n] * len(d) for n, d in zip(levels, depths, strict=True)]
    mirrored = [[n] * len(u) for n, u in zip(levels[::-1], ups, strict=True)]
    even = all(d == e for d, e in zip(depths, expected, strict=True) if any(d))
    if even and all(u == m for u, m in zip(ups, mirrored, strict=True) if any(u)):
        return {"transformer_layers_per_block": levels}
    return {
        "transformer_layers_per_block": [d if any(d) else 1 for d in depths],
        "reverse_transformer_layers_per_block": [u if any(u) else 1 for u in ups],
    }


def _require_even(depths: list[list[int]], blocks: list[str], where: Path) -> None:
    for block, found in zip(blocks, depths, strict=True):
        if any(found) and not all(found):
            raise InputError(
                f"`{block}` has attentions after some of its resnets only, which diffusers' "
                "configs cannot say",
                where=where,
            )


def _per_id(added: int, projection: int, time_ids: int, where: Path) -> int:
    each, rest = divmod(added - projection, time_ids)
    if rest or each < 1:
        raise InputError(
            f"the UNet is told {added} values beside the prompt; text encoder 2 gives {projection} "
            f"of them, and the rest is no multiple of {time_ids}",
            where=where,
            hint="UNet and text encoder belong to different models.",
        )
    return each


def fitted_vae(shapes: Shapes, template: ConfigValues, where: Path) -> dict[str, Any]:
    """The config.json of a VAE with tensors of these shapes; as `fitted_unet`."""
    downs = _blocks(shapes, "encoder.down_blocks", where)
    channels = [_shape(shapes, f"{b}.resnets.0.conv1.weight", 4, where)[0] for b in downs]
    layers = {len(_numbers(shapes, f"{block}.resnets")) for block in downs}
    if len(layers) != 1:
        raise InputError("the VAE's blocks have different numbers of resnets", where=where)
    latents = _shape(shapes, "decoder.conv_in.weight", 4, where)[1]
    found: dict[str, Any] = {
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4, where)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4, where)[0],
        "latent_channels": latents,
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": layers.pop(),
    }
    for key, name in (
        ("mid_block_add_attention", "encoder.mid_block.attentions.0.to_q.weight"),
        ("use_quant_conv", "quant_conv.weight"),
        ("use_post_quant_conv", "post_quant_conv.weight"),
    ):
        if template.get(key, True) != (name in shapes):
            found[key] = name in shapes
    if channels != template.get("block_out_channels"):
        found["norm_num_groups"] = _groups(channels, "the VAE", where)
    return _merged(template, found)


def fitted_text_encoder(shapes: Shapes, template: ConfigValues, where: Path) -> dict[str, Any]:
    """The config.json of a text encoder with tensors of these shapes; as `fitted_unet`."""
    rows, width = _shape(shapes, "embeddings.token_embedding.weight", 2, where)
    found: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": len(_numbers(shapes, "encoder.layers")),
        "intermediate_size": _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2, where)[0],
        "max_position_embeddings": _shape(shapes, "embeddings.position_embedding.weight", 2, where)[
            0
        ],
    }
    if "text_projection.weight" in shapes:
        found["projection_dim"] = _shape(shapes, "text_projection.weight", 2, where)[0]
    elif width != template.get("hidden_size"):
        found["projection_dim"] = width  # SDXL's first text encoder has none
    if width != template.get("hidden_size"):
        found["num_attention_heads"] = _heads(width, "the text encoder", where)
    return _merged(template, found)


def _merged(template: ConfigValues, found: ConfigValues) -> dict[str, Any]:
    """The template with what shapes say, where the two do not say the same in different words."""
    other = {k: v for k, v in found.items() if not _says(template.get(k), v)}
    kept = {k: v for k, v in template.items() if k != "reverse_transformer_layers_per_block"}
    return {**kept, **other} if "transformer_layers_per_block" in other else {**template, **other}


def _says(known: Any, found: Any) -> bool:
    if isinstance(found, list):  # a single number counts for all blocks
        return found == (list(known) if isinstance(known, list | tuple) else [known] * len(found))
    return bool(known == found)


def _heads(width: int, what: str, where: Path) -> int:
    if width % HEAD:
        raise InputError(
            f"in {what}, {width} channels wide, which is no multiple of {HEAD}, the file does not "
            "tell how many heads attentions have",
            where=where,
            hint=BASE,
        )
    return width // HEAD


def _groups(channels: list[int], what: str, where: Path) -> int:
    for width in channels:
        if width % GROUPS:
            raise InputError(
                f"{what} has blocks of {width} channels, no multiple of {GROUPS}: how many groups "
                "its norms have cannot be told from the file",
                where=where,
                hint=BASE,
            )
    return GROUPS


def _blocks(shapes: Shapes, side: str, where: Path) -> list[str]:
    """The blocks `side`.0, `side`.1, …, of which there must be one."""
    blocks = [f"{side}.{number}" for number in _numbers(shapes, side)]
    if not blocks:
        raise InputError(f"lacks `{side}`", where=where)
    return blocks


def _numbers(shapes: Shapes, prefix: str) -> range:
    """0 … n - 1, of the things that are numbered after `prefix`; a gap ends them."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d{{1,4}})\.")
    found = {int(m[1]) for m in map(pattern.match, shapes) if m}
    return range(next(n for n in range(len(found) + 1) if n not in found))


def _depths(shapes: Shapes, block: str) -> list[int]:
    """The transformer layers after each resnet of a block; 0 where it has no attention."""
    layers = _numbers(shapes, f"{block}.resnets")
    return [_depth(shapes, f"{block}.attentions.{layer}") for layer in layers]


def _depth(shapes: Shapes, attention: str) -> int:
    return len(_numbers(shapes, f"{attention}.transformer_blocks"))


def _shape(shapes: Shapes, name: str, axes: int, where: Path) -> tuple[int, ...]:
    """The shape of a tensor that must be there and have so many axes."""
    shape = shapes.get(name)
    if shape is None:
        raise InputError(
            f"lacks tensor `{name}`",
            where=where,
            hint="The file is incomplete: download it again, or save it with all of its parts.",
        )
    if len(shape) != axes or 0 in shape:
        raise InputError(f"tensor `{name}` has the shape {list(shape)}", where=where)
    return shape
