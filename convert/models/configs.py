"""What of each network's config.json shapes it; whatever we could not build is an error here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.components import MAX_TOKENS
from convert.errors import InputError
from convert.models.config import Config, block_type

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")  # the latter in Segmind's SSD-1B


@dataclass(frozen=True)
class UNetConfig:
    """What of config.json shapes the network. Lists have one entry a block, from the outside in."""

    in_channels: int
    out_channels: int
    channels: list[int]
    down_blocks: list[str]
    up_blocks: list[str]
    mid_block: str
    layers: list[int]  # resnets in each down block; an up block has one more
    transformer_layers: list[list[int]]  # of each attention of each down block
    up_transformer_layers: list[list[int]]  # the same of the up blocks, in their own order
    heads: list[int]
    cross_attention_dim: int
    groups: int
    epsilon: float
    act: str
    conv_in_kernel: int
    conv_out_kernel: int
    time_embed_dim: int
    flip_sin_to_cos: bool
    freq_shift: float
    addition_time_embed_dim: int
    text_embed_dim: int  # of the pooled embeddings of text encoder 2
    time_ids: int  # 6, or 5 for a refiner

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path, text_embed_dim: int) -> UNetConfig:
        """Read config.json; raises InputError for anything this network cannot express."""
        c = Config(values, where)
        c.only("addition_embed_type", "text_time")
        c.only("mid_block_type", *MID_BLOCKS)
        c.only("time_embedding_type", "positional")
        c.only("resnet_time_scale_shift", "default")
        c.only("attention_type", "default")
        c.only("downsample_padding", 1)
        c.only("mid_block_scale_factor", 1)
        c.only("resnet_out_scale_factor", 1)
        c.ignore("sample_size", "dropout", "upcast_attention", "addition_embed_type_num_heads")
        c.ignore("use_linear_projection")  # a 1×1 convolution here in either case
        channels = c.get("block_out_channels")
        if not isinstance(channels, list | tuple) or not channels:
            raise c.error("block_out_channels", channels, "a list of widths")
        down = block_type(c, "down_block_types", DOWN_BLOCKS)
        up = block_type(c, "up_block_types", UP_BLOCKS)
        count = len(channels)
        if len(down) != count or len(up) != count:
            raise InputError(
                f"{len(down)} down blocks, {len(up)} up blocks and {count} widths",
                where=where,
                hint="`down_block_types`, `up_block_types` and `block_out_channels` go together.",
            )
        layers = c.per_block("layers_per_block", count, 2)
        depths = [
            list(depth) if isinstance(depth, list | tuple) else [depth] * n
            for depth, n in zip(
                c.per_block("transformer_layers_per_block", count, 1), layers, strict=True
            )
        ]
        reverse = c.get("reverse_transformer_layers_per_block", None)
        if reverse is None:
            up_depths = [[d[-1]] * (n + 1) for d, n in zip(depths, layers, strict=True)][::-1]
            if any(len(set(d)) > 1 for d in depths):
                raise c.error(
                    "transformer_layers_per_block",
                    values["transformer_layers_per_block"],
                    "nested lists only beside `reverse_transformer_layers_per_block`",
                )
        else:
            up_depths = [
                list(d) if isinstance(d, list | tuple) else [d] * (n + 1)
                for d, n in zip(
                    c.per_block("reverse_transformer_layers_per_block", count),
                    layers[::-1],
                    strict=True,
                )
            ]
        # diffusers calls the number of heads `attention_head_dim`, for compatibility with itself
        heads = c.per_block("attention_head_dim", count, 8)
        if c.get("num_attention_heads", None) is not None:
            heads = c.per_block("num_attention_heads", count)
        for width, n in zip(channels, heads, strict=True):
            if width % n:
                raise c.error("attention_head_dim", heads, f"heads that divide the width {width}")
        cross = c.get("cross_attention_dim")
        if isinstance(cross, list | tuple):
            if len(set(cross)) != 1:
                raise c.error("cross_attention_dim", cross, "one width for all blocks")
            cross = cross[0]
        embed_dim = c.integer("addition_time_embed_dim")
        in_features = c.integer("projection_class_embeddings_input_dim")
        time_ids, rest = divmod(in_features - text_embed_dim, embed_dim)
        if rest or time_ids not in (5, 6):
            raise c.error(
                "projection_class_embeddings_input_dim",
                in_features,
                f"{text_embed_dim} (of text encoder 2) plus 6 or, for a refiner, 5 time ids of "
                f"{embed_dim} each",
            )
        config = UNetConfig(
            in_channels=c.integer("in_channels", 4),
            out_channels=c.integer("out_channels", 4),
            channels=list(channels),
            down_blocks=down,
            up_blocks=up,
            mid_block=c.get("mid_block_type", MID_BLOCKS[0]),
            layers=layers,
            transformer_layers=depths,
            up_transformer_layers=up_depths,
            heads=heads,
            cross_attention_dim=int(cross),
            groups=c.integer("norm_num_groups", 32),
            epsilon=float(c.get("norm_eps", 1e-5)),
            act=c.get("act_fn", "silu"),
            conv_in_kernel=c.integer("conv_in_kernel", 3),
            conv_out_kernel=c.integer("conv_out_kernel", 3),
            time_embed_dim=c.get("time_embedding_dim", None) or 4 * channels[0],
            flip_sin_to_cos=bool(c.get("flip_sin_to_cos", True)),
            freq_shift=float(c.get("freq_shift", 0)),
            addition_time_embed_dim=embed_dim,
            text_embed_dim=text_embed_dim,
            time_ids=time_ids,
        )
        c.finish()
        return config


@dataclass(frozen=True)
class VAEConfig:
    """What of config.json shapes the network; `channels` from the image inwards."""

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: list[int]
    layers: int
    groups: int
    act: str
    mid_attention: bool
    quant_conv: bool
    post_quant_conv: bool

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.channels) - 1)

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path) -> VAEConfig:
        """Read config.json; raises InputError for anything this network cannot express."""
        c = Config(values, where)
        channels = c.get("block_out_channels")
        if not isinstance(channels, list | tuple) or not channels:
            raise c.error("block_out_channels", channels, "a list of widths")
        down = block_type(c, "down_block_types", ("DownEncoderBlock2D",))
        up = block_type(c, "up_block_types", ("UpDecoderBlock2D",))
        if not len(channels) == len(down) == len(up):
            raise InputError(
                f"{len(down)} down blocks, {len(up)} up blocks and {len(channels)} widths",
                where=where,
                hint="`down_block_types`, `up_block_types` and `block_out_channels` go together.",
            )
        # How latents are scaled and images tiled is the pipeline's business, not the network's.
        c.ignore("sample_size", "force_upcast", "scaling_factor", "shift_factor")
        c.ignore("latents_mean", "latents_std")
        config = VAEConfig(
            in_channels=c.integer("in_channels", 3),
            out_channels=c.integer("out_channels", 3),
            latent_channels=c.integer("latent_channels", 4),
            channels=list(channels),
            layers=c.integer("layers_per_block", 1),
            groups=c.integer("norm_num_groups", 32),
            act=c.get("act_fn", "silu"),
            mid_attention=bool(c.get("mid_block_add_attention", True)),
            quant_conv=bool(c.get("use_quant_conv", True)),
            post_quant_conv=bool(c.get("use_post_quant_conv", True)),
        )
        c.finish()
        return config

    def latent_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the latents of an image (height, width) in pixels.

        Raises:
            InputError: a side is no multiple of the factor.
        """
        height, width = image_size
        if height % self.factor or width % self.factor:
            near = [max(1, round(side / self.factor)) * self.factor for side in (width, height)]
            raise InputError(
                f"resolution {width}x{height}: width and height must be multiples of {self.factor}",
                hint=f"The nearest is {near[0]}x{near[1]}.",
            )
        return height // self.factor, width // self.factor


@dataclass(frozen=True)
class CLIPConfig:
    """What of config.json shapes the network."""

    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    act: str
    epsilon: float
    eos_token_id: int
    projection: int | None  # width of the projected pooled output, if there is a projection

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path, *, projected: bool) -> CLIPConfig:
        """Read config.json; raises InputError for anything this network cannot express."""
        c = Config(values, where)
        c.only("max_position_embeddings", MAX_TOKENS)
        c.only("model_type", "clip_text_model")
        config = CLIPConfig(
            vocabulary=c.integer("vocab_size", 49408),
            width=c.integer("hidden_size", 512),
            intermediate=c.integer("intermediate_size", 2048),
            layers=c.integer("num_hidden_layers", 12),
            heads=c.integer("num_attention_heads", 8),
            act=c.get("hidden_act", "quick_gelu"),
            epsilon=float(c.get("layer_norm_eps", 1e-5)),
            eos_token_id=c.integer("eos_token_id", 49407),
            projection=c.integer("projection_dim", 512) if projected else None,
        )
        if config.layers < 2:
            raise c.error(
                "num_hidden_layers", config.layers, "at least 2: SDXL reads the last but one"
            )
        if config.width % config.heads:
            raise c.error("num_attention_heads", config.heads, f"divisors of {config.width}")
        # No c.finish(): transformers fills CLIP's config.json with settings of generation and the
        # like, and none but those above shapes the network.
        return config
