"""SDXL's UNet (diffusers' UNet2DConditionModel), from its config, in the [B, C, 1, S] layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Var

from convert.checkpoint.configs import UNetConfig
from convert.checkpoint.tensors import Tensor
from convert.components import BATCH
from convert.networks.attention import ATTENTION
from convert.networks.graph import Input, Module, Network, build
from convert.networks.layers import (
    activation,
    cast,
    conv,
    group_norm,
    layer_norm,
    to_float32,
    upsample,
)
from convert.weights.compress import NONE, Compression

TRANSFORMER_NORM_EPSILON = 1e-6  # fixed in diffusers' Transformer2DModel
LAYER_NORM_EPSILON = 1e-5

AttentionFunction = Callable[[Module, Var, Var, Var, int], Var]


def unet(
    config: UNetConfig,
    tensors: Mapping[str, Tensor],
    *,
    inputs: Mapping[str, Input],
    attention: str,
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """The UNet as a network: noise or velocity of a batch of two from latents and conditions.

    Args:
        tensors: the checkpoint's UNet tensors.
        inputs: as the table of components has them.
        attention: a key of `ATTENTION`.
        dtype: of weights and activations, float16 or float32.
        target: coremltools' opset version.
        compression: of the weights.

    Raises:
        InputError: the tensors do not fit the config.
    """

    def body(
        m: Module,
        sample: Var,
        timestep: Var,
        encoder_hidden_states: Var,
        time_ids: Var,
        text_embeds: Var,
    ) -> dict[str, Var]:
        temb = embed_conditions(m, config, timestep, time_ids, text_embeds)
        blocks = Blocks(config, temb, encoder_hidden_states, ATTENTION[attention])
        x = conv(m["conv_in"], sample, config.channels[0], config.conv_in_kernel)
        x, skips = blocks.down(m["down_blocks"], x)
        x = blocks.mid(m["mid_block"], x)
        x = blocks.up(m["up_blocks"], x, skips)
        x = group_norm(m["conv_norm_out"], x, groups=config.groups, epsilon=config.epsilon)
        x = activation(m["conv_act"], config.act, x)
        x = conv(m["conv_out"], x, config.out_channels, config.conv_out_kernel)
        return {"noise_pred": to_float32(m, x)}

    return build(tensors, inputs, body, dtype=dtype, target=target, compression=compression)


def embed_conditions(
    m: Module, config: UNetConfig, timestep: Var, time_ids: Var, text_embeds: Var
) -> Var:
    """Timestep, size and crop, and pooled text as one embedding, activated: [B, E, 1, 1]."""
    time = sinusoidal(m["time_proj"], config, timestep, config.channels[0])  # [B, C]
    emb = mlp(m["time_embedding"], config, time)
    flat = m.emit("reshape", name="add_time_proj_ids", x=time_ids, shape=[-1])
    sizes = sinusoidal(m["add_time_proj"], config, flat, config.addition_time_embed_dim)
    sizes = m.emit("reshape", name="add_time_proj_embeds", x=sizes, shape=[BATCH, -1])
    added = m.emit(
        "concat", name="add_embeds", values=[text_embeds, sizes], axis=-1, interleave=False
    )
    emb = m.emit("add", name="emb", x=emb, y=mlp(m["add_embedding"], config, added))
    return activation(m["emb"], config.act, emb)


def sinusoidal(m: Module, config: UNetConfig, x: Var, dim: int) -> Var:
    """Sinusoidal embedding [N] → [N, dim], in float32 (diffusers' get_timestep_embedding).

    In float16, 999 × frequency has a rounding step of up to half a radian. Exponentials are of
    float64: those of float32 differ between processors, and with them the package's bytes.
    """
    half = dim // 2
    exponent = -math.log(10000) * np.arange(half, dtype=np.float32) / (half - config.freq_shift)
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)[None]
    dtype = m.graph.dtype
    if dtype != np.float32:
        x = cast(m, x, "fp32", name="fp32")
    x = m.emit("mul", x=m.emit("expand_dims", x=x, axes=[-1]), y=frequencies)  # [N, dim / 2]
    waves = [m.emit("sin", x=x), m.emit("cos", x=x)]
    x = m.emit(
        "concat", values=waves[::-1] if config.flip_sin_to_cos else waves, axis=-1, interleave=False
    )
    return x if dtype == np.float32 else cast(m, x, "fp16", name="fp16")


def mlp(m: Module, config: UNetConfig, x: Var) -> Var:
    """Two linear layers with an activation between: [B, C] → [B, E, 1, 1]."""
    x = m.emit("expand_dims", x=m.emit("expand_dims", x=x, axes=[-1]), axes=[-1])
    x = conv(m["linear_1"], x, config.time_embed_dim, linear=True)
    x = activation(m["act"], config.act, x)
    return conv(m["linear_2"], x, config.time_embed_dim, linear=True)


@dataclass(frozen=True)
class Blocks:
    """The three stages of the UNet, for one config and one set of conditions."""

    config: UNetConfig
    temb: Var  # [B, E, 1, 1], activated
    text: Var  # [B, C, 1, T]
    attention: AttentionFunction

    def down(self, m: Module, x: Var) -> tuple[Var, list[Var]]:
        """Every down block; also returns what the up blocks will concatenate."""
        c, skips = self.config, [x]
        for i, kind in enumerate(c.down_blocks):
            block = m[i]
            for j in range(c.layers[i]):
                x = self.resnet(block["resnets"][j], x, c.channels[i])
                if kind == "CrossAttnDownBlock2D":
                    depth = c.transformer_layers[i][j]
                    x = self.transformer(block["attentions"][j], x, c.heads[i], depth)
                skips.append(x)
            if i < len(c.channels) - 1:
                x = conv(block["downsamplers"][0]["conv"], x, c.channels[i], 3, stride=2)
                skips.append(x)
        return x, skips

    def mid(self, m: Module, x: Var) -> Var:
        """The block in the middle, at the smallest size: [B, C, H, W] → the same.

        Source: diffusers `UNetMidBlock2DCrossAttn` and `UNetMidBlock2D`.
        """
        c = self.config
        x = self.resnet(m["resnets"][0], x, c.channels[-1])
        if c.mid_block == "UNetMidBlock2D":
            return x
        x = self.transformer(m["attentions"][0], x, c.heads[-1], c.transformer_layers[-1][-1])
        return self.resnet(m["resnets"][1], x, c.channels[-1])

    def up(self, m: Module, x: Var, skips: list[Var]) -> Var:
        """The way up: [B, C, H, W] at the smallest size → [B, C0, H0, W0] at the largest.

        Args:
            skips: what the way down kept, its last on top; all are taken.

        Source: diffusers `CrossAttnUpBlock2D` and `UpBlock2D`.
        """
        c = self.config
        for i, kind in enumerate(c.up_blocks):
            block, level = m[i], len(c.channels) - 1 - i
            for j in range(c.layers[level] + 1):
                x = block["resnets"][j].emit(
                    "concat", values=[x, skips.pop()], axis=1, interleave=False
                )
                x = self.resnet(block["resnets"][j], x, c.channels[level])
                if kind == "CrossAttnUpBlock2D":
                    depth = c.up_transformer_layers[i][j]
                    x = self.transformer(block["attentions"][j], x, c.heads[level], depth)
            if level:
                x = upsample(block["upsamplers"][0], x, tuple(skips[-1].shape[2:]))
        return x

    def resnet(self, m: Module, x: Var, channels: int) -> Var:
        """ResnetBlock2D: [B, C, H, W] → [B, channels, H, W]."""
        c, skip = self.config, x
        x = group_norm(m["norm1"], x, groups=c.groups, epsilon=c.epsilon)
        x = conv(m["conv1"], activation(m["norm1"], c.act, x), channels, 3)
        temb = conv(m["time_emb_proj"], self.temb, channels, linear=True)
        x = m.emit("add", name="temb", x=x, y=temb)
        x = group_norm(m["norm2"], x, groups=c.groups, epsilon=c.epsilon)
        x = conv(m["conv2"], activation(m["norm2"], c.act, x), channels, 3)
        if skip.shape[1] != channels:
            skip = conv(m["conv_shortcut"], skip, channels)
        return m.emit("add", name="", x=skip, y=x)

    def transformer(self, m: Module, x: Var, heads: int, depth: int) -> Var:
        """Transformer2DModel: [B, C, H, W] → [B, C, H, W]."""
        c, skip, shape = self.config, x, x.shape
        x = group_norm(m["norm"], x, groups=c.groups, epsilon=TRANSFORMER_NORM_EPSILON)
        x = projection(m["proj_in"], x)
        x = m.emit("reshape", x=x, shape=[*shape[:2], 1, shape[2] * shape[3]])  # [B, C, 1, S]
        for i in range(depth):
            x = self.transformer_block(m["transformer_blocks"][i], x, heads)
        x = m.emit("reshape", x=x, shape=list(shape))
        return m.emit("add", name="", x=projection(m["proj_out"], x), y=skip)

    def transformer_block(self, m: Module, x: Var, heads: int) -> Var:
        """BasicTransformerBlock: self-attention, cross-attention, gated feed-forward."""
        norm = normalise(m["norm1"], x)
        x = m.emit("add", name="attn1_add", x=self.attend(m["attn1"], norm, norm, heads), y=x)
        norm = normalise(m["norm2"], x)
        x = m.emit("add", name="attn2_add", x=self.attend(m["attn2"], norm, self.text, heads), y=x)
        return m.emit("add", name="", x=feed_forward(m["ff"], normalise(m["norm3"], x)), y=x)

    def attend(self, m: Module, x: Var, context: Var, heads: int) -> Var:
        """Attention of x [B, C, 1, S] over context [B, C', 1, T]."""
        channels = x.shape[1]
        q = conv(m["to_q"], x, channels, linear=True, bias=False)
        k = conv(m["to_k"], context, channels, linear=True, bias=False)
        v = conv(m["to_v"], context, channels, linear=True, bias=False)
        return conv(m["to_out"][0], self.attention(m, q, k, v, heads), channels, linear=True)


def normalise(m: Module, x: Var) -> Var:
    """Layer norm over the channels: [B, C, 1, S] → the same."""
    return layer_norm(m, x, axis=1, epsilon=LAYER_NORM_EPSILON)


def projection(m: Module, x: Var) -> Var:
    """`proj_in` and `proj_out`: a linear layer, or in older configs a 1×1 convolution."""
    tensor = m.graph.tensors.get(m["weight"].path)
    return conv(m, x, x.shape[1], linear=tensor is None or len(tensor.shape) == 2)


def feed_forward(m: Module, x: Var) -> Var:
    """GEGLU: half of the widened features gate the other half."""
    channels = x.shape[1]
    x = conv(m["net"][0]["proj"], x, 8 * channels, linear=True)
    value, gate = m.emit("split", x=x, split_sizes=[4 * channels] * 2, axis=1)
    x = m.emit("mul", x=value, y=m.emit("gelu", x=gate, mode="EXACT"))
    return conv(m["net"][2], x, channels, linear=True)
