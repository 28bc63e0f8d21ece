"""The settings of each config.json that shape its network; what cannot be built is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from convert.checkpoint.config_reader import Config, block_type
from convert.checkpoint.latents import LatentScaling
from convert.components import MAX_TOKENS
from convert.errors import InputError
from convert.values import Resolution

LEGACY_EOS = 2  # of configs written before transformers 4.29, whatever the tokenizer says
DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")  # the latter in Segmind's SSD-1B

MOST_LAYERS = 512  # in a block, or of a text encoder
MOST_KERNEL = 63
NESTED = "a text encoder's config, with its keys at the top, not that of a whole CLIP model"


@dataclass(frozen=True)
class UNetConfig:
    """The settings that shape the UNet. Lists have one entry a block, from the outside in."""

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

    @property
    def sizes(self) -> dict[str, int]:
        """What the names in the table of components stand for."""
        return {
            "sample channels": self.in_channels,
            "noise channels": self.out_channels,
            "context": self.cross_attention_dim,
            "time ids": self.time_ids,
            "pooled": self.text_embed_dim,
        }

    def level(self, name: str) -> int:
        """The level of the block that has a tensor, by its name; 0 is the full size of latents."""
        last = len(self.channels) - 1
        found = re.match(r"(down|up)_blocks\.(\d+)\.", name)
        if found is None:
            return last  # the block in the middle
        number = min(int(found[2]), last)
        return number if found[1] == "down" else last - number

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
        c.ignore("sample_size", int, list)
        c.ignore("dropout", int, float)
        c.ignore("upcast_attention", bool)
        c.ignore("addition_embed_type_num_heads", int)
        c.ignore("use_linear_projection", bool)  # a 1×1 convolution here in either case
        channels = c.integers("block_out_channels")
        down = block_type(c, "down_block_types", DOWN_BLOCKS)
        up = block_type(c, "up_block_types", UP_BLOCKS)
        count = len(channels)
        if len(down) != count or len(up) != count:
            raise InputError(
                f"{len(down)} down blocks, {len(up)} up blocks and {count} widths",
                where=where,
                hint="`down_block_types`, `up_block_types` and `block_out_channels` go together.",
            )
        layers = c.per_block("layers_per_block", count, 2, most=MOST_LAYERS)
        depths, up_depths = _transformer_layers(c, layers)
        # diffusers calls the number of heads `attention_head_dim`, for compatibility with itself
        heads = c.per_block("attention_head_dim", count, 8)
        if c.get("num_attention_heads", None) is not None:
            heads = c.per_block("num_attention_heads", count)
        for width, n in zip(channels, heads, strict=True):
            if width % n:
                raise c.error("attention_head_dim", heads, f"heads that divide the width {width}")
        cross = c.per_block("cross_attention_dim", count)
        if len(set(cross)) != 1:
            raise c.error("cross_attention_dim", cross, "one width for all blocks")
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
            channels=channels,
            down_blocks=down,
            up_blocks=up,
            mid_block=c.text("mid_block_type", MID_BLOCKS[0]),
            layers=layers,
            transformer_layers=depths,
            up_transformer_layers=up_depths,
            heads=heads,
            cross_attention_dim=cross[0],
            groups=c.integer("norm_num_groups", 32),
            epsilon=c.number("norm_eps", 1e-5, least=0, most=1),
            act=c.activation("act_fn", "silu"),
            conv_in_kernel=_kernel(c, "conv_in_kernel"),
            conv_out_kernel=_kernel(c, "conv_out_kernel"),
            time_embed_dim=4 * channels[0]
            if c.get("time_embedding_dim", None) is None
            else c.integer("time_embedding_dim"),
            flip_sin_to_cos=c.flag("flip_sin_to_cos", True),
            freq_shift=_freq_shift(c, channels[0], embed_dim),
            addition_time_embed_dim=embed_dim,
            text_embed_dim=text_embed_dim,
            time_ids=time_ids,
        )
        c.finish()
        return config


def _transformer_layers(c: Config, layers: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """The transformer layers of every attention, of the down blocks and of the up blocks."""
    key, reverse = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    depths = c.nested_per_block(key, layers, 1, least=0, most=MOST_LAYERS)
    ups = [n + 1 for n in layers[::-1]]
    if c.get(reverse, None) is not None:
        return depths, c.nested_per_block(reverse, ups, least=0, most=MOST_LAYERS)
    if any(len(set(d)) > 1 for d in depths):
        raise c.error(key, c.values[key], f"nested lists only beside `{reverse}`")
    return depths, [[d[-1]] * n for d, n in zip(depths[::-1], ups, strict=True)]


def _kernel(c: Config, key: str) -> int:
    """The size of a square convolution that keeps the picture's size, so an odd one."""
    size = c.integer(key, 3, most=MOST_KERNEL)
    if size % 2 == 0:
        raise c.error(key, size, "odd sizes")
    return size


def _freq_shift(c: Config, *widths: int) -> float:
    """The shift of the sinusoids' frequencies, which is taken off half of each width."""
    shift = c.number("freq_shift", 0, least=0, most=1)
    if shift >= min(widths) // 2:
        raise c.error("freq_shift", shift, f"less than half of the width {min(widths)}")
    return shift


class LatentSize(NamedTuple):
    """The size of latents, in the order of a tensor's axes."""

    height: int
    width: int


@dataclass(frozen=True)
class VAEConfig:
    """The settings that shape the VAE; `channels` from the image inwards."""

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
    scaling: LatentScaling

    @property
    def sizes(self) -> dict[str, int]:
        """What the names in the table of components stand for."""
        return {
            "latent channels": self.latent_channels,
            "moments": 2 * self.latent_channels,  # mean ‖ log-variance
            "image channels": self.out_channels,
            "input channels": self.in_channels,
        }

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.channels) - 1)

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path) -> VAEConfig:
        """Read config.json; raises InputError for anything this network cannot express."""
        c = Config(values, where)
        channels = c.integers("block_out_channels")
        down = block_type(c, "down_block_types", ("DownEncoderBlock2D",))
        up = block_type(c, "up_block_types", ("UpDecoderBlock2D",))
        if not len(channels) == len(down) == len(up):
            raise InputError(
                f"{len(down)} down blocks, {len(up)} up blocks and {len(channels)} widths",
                where=where,
                hint="`down_block_types`, `up_block_types` and `block_out_channels` go together.",
            )
        # Of images and dtypes, which is not the network's business; `LatentScaling` reads the rest.
        c.ignore("sample_size", int, list)
        c.ignore("force_upcast", bool)
        c.ignore("scaling_factor", int, float)
        c.ignore("shift_factor", int, float)
        c.ignore("latents_mean", list)
        c.ignore("latents_std", list)
        latent_channels = c.integer("latent_channels", 4)
        config = VAEConfig(
            in_channels=c.integer("in_channels", 3),
            out_channels=c.integer("out_channels", 3),
            latent_channels=latent_channels,
            channels=channels,
            layers=c.integer("layers_per_block", 1, most=MOST_LAYERS),
            groups=c.integer("norm_num_groups", 32),
            act=c.activation("act_fn", "silu"),
            mid_attention=c.flag("mid_block_add_attention", True),
            quant_conv=c.flag("use_quant_conv", True),
            post_quant_conv=c.flag("use_post_quant_conv", True),
            scaling=LatentScaling.parse(values, where, latent_channels),
        )
        c.finish()
        return config

    def latent_size(self, resolution: Resolution) -> LatentSize:
        """The size of the latents of an image.

        Raises:
            InputError: a side is no multiple of the factor.
        """
        height, width = resolution.height, resolution.width
        if height % self.factor or width % self.factor:
            near = [max(1, round(side / self.factor)) * self.factor for side in (width, height)]
            raise InputError(
                f"resolution {resolution}: width and height must be multiples of {self.factor}",
                hint=f"The nearest is {near[0]}x{near[1]}.",
            )
        return LatentSize(height // self.factor, width // self.factor)


@dataclass(frozen=True)
class CLIPConfig:
    """The settings that shape a text encoder."""

    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    act: str
    epsilon: float
    eos_token_id: int
    projection: int | None  # width of the projected pooled output, if there is a projection

    @property
    def sizes(self) -> dict[str, int]:
        """What the names in the table of components stand for."""
        return {"width": self.width, "projection": self.projection or self.width}

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path, *, projected: bool) -> CLIPConfig:
        """Read config.json; raises InputError for anything this network cannot express."""
        c = Config(values, where)
        if "text_config" in values:
            raise c.error("text_config", values["text_config"], NESTED)
        c.only("max_position_embeddings", MAX_TOKENS)
        c.only("model_type", "clip_text_model")
        config = CLIPConfig(
            vocabulary=c.integer("vocab_size", 49408),
            width=c.integer("hidden_size", 512),
            intermediate=c.integer("intermediate_size", 2048),
            layers=c.integer("num_hidden_layers", 12, most=MOST_LAYERS),
            heads=c.integer("num_attention_heads", 8),
            act=c.activation("hidden_act", "quick_gelu"),
            epsilon=c.number("layer_norm_eps", 1e-5, least=0, most=1),
            eos_token_id=c.integer("eos_token_id", 49407, least=0),
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


class PartConfig(Protocol):
    """The typed config of a part."""

    @property
    def sizes(self) -> dict[str, int]:
        """What the names in the table of components stand for."""
        ...


class OwnConfig(PartConfig, Protocol):
    """One that follows from the part's config.json alone."""

    @staticmethod
    def parse(values: Mapping[str, Any], where: Path) -> PartConfig:
        """Read config.json; raises InputError for anything its network cannot express."""
        ...


CONFIGS: dict[str, type[OwnConfig]] = {"vae": VAEConfig}
