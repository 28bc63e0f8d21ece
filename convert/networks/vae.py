"""SDXL's VAE (diffusers' AutoencoderKL): decoder and encoder, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Var

from convert.checkpoint.configs import VAEConfig
from convert.checkpoint.latents import Affine
from convert.checkpoint.tensors import Tensor
from convert.networks.graph import Input, Module, Network, build
from convert.networks.layers import activation, cast, conv, group_norm, linear, to_float32, upsample
from convert.weights.compress import NONE, Compression

EPSILON = 1e-6  # fixed in diffusers' Encoder and Decoder


def vae_decoder(
    c: VAEConfig,
    tensors: Mapping[str, Tensor],
    *,
    inputs: Mapping[str, Input],
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """The decoder: `z` [1, 4, H/8, W/8], divided by 0.13025, → `image` float32 [1, 3, H, W].

    Where the config scales latents otherwise, `z` is first given that scale
    (`convert.checkpoint.latents`).

    Args:
        tensors: the checkpoint's tensors under `decoder.` and `post_quant_conv.`.
        inputs: as the table of components has them.
        dtype: of weights, activations and `z`.
        target: coremltools' opset version.
        compression: of the weights.

    Raises:
        InputError: the tensors do not fit the config.
    """

    def body(m: Module, z: Var) -> dict[str, Var]:
        x = rescale_input(m["latents"], c, z)
        x = conv(m["post_quant_conv"], x, c.latent_channels) if c.post_quant_conv else x
        m = m["decoder"]
        x = conv(m["conv_in"], x, c.channels[-1], 3)
        x = mid_block(m["mid_block"], c, x)
        for i, channels in enumerate(reversed(c.channels)):
            block = m["up_blocks"][i]
            for j in range(c.layers + 1):
                x = resnet(block["resnets"][j], c, x, channels)
            if i < len(c.channels) - 1:
                size = (2 * x.shape[2], 2 * x.shape[3])
                x = upsample(block["upsamplers"][0], x, size)
        x = norm_act(m["conv_norm_out"], c, x)
        return {"image": to_float32(m, conv(m["conv_out"], x, c.out_channels, 3))}

    return build(tensors, inputs, body, dtype=dtype, target=target, compression=compression)


def vae_encoder(
    c: VAEConfig,
    tensors: Mapping[str, Tensor],
    *,
    inputs: Mapping[str, Input],
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """The encoder: `x` [1, 3, H, W] → `latent` float32 [1, 8, H/8, W/8], mean ‖ log-variance.

    Latents are those that apps multiply by 0.13025, whatever the config's scale is.
    Arguments and errors as `vae_decoder`, with the tensors under `encoder.` and `quant_conv.`.
    """

    def body(m: Module, x: Var) -> dict[str, Var]:
        root, m = m, m["encoder"]
        x = conv(m["conv_in"], x, c.channels[0], 3)
        for i, channels in enumerate(c.channels):
            block = m["down_blocks"][i]
            for j in range(c.layers):
                x = resnet(block["resnets"][j], c, x, channels)
            if i < len(c.channels) - 1:
                x = downsample(block["downsamplers"][0], x)
        x = norm_act(m["conv_norm_out"], c, mid_block(m["mid_block"], c, x))
        x = conv(m["conv_out"], x, 2 * c.latent_channels, 3)
        if c.quant_conv:
            x = conv(root["quant_conv"], x, 2 * c.latent_channels)
        x = to_float32(root, x)
        if not c.scaling.is_standard:
            x = affine(root["latents"], x, c.scaling.encoder(c.latent_channels))
        return {"latent": x}

    return build(tensors, inputs, body, dtype=dtype, target=target, compression=compression)


def rescale_input(m: Module, c: VAEConfig, z: Var) -> Var:
    """Latents as apps divide them → as the decoder knows them, computed in float32."""
    if c.scaling.is_standard:
        return z
    z = affine(m, to_float32(m, z), c.scaling.decoder(c.latent_channels))
    return z if m.graph.dtype == np.float32 else cast(m, z, "fp16")


def affine(m: Module, x: Var, numbers: Affine) -> Var:
    """x · scale + offset, of each channel, float32."""
    scale, offset = numbers
    return m.emit("add", x=m.emit("mul", x=x, y=scale), y=offset)


def norm_act(m: Module, c: VAEConfig, x: Var) -> Var:
    """Group norm and the activation: [1, C, H, W] → the same."""
    return activation(m, c.act, vae_norm(m, c, x))


def vae_norm(m: Module, c: VAEConfig, x: Var, *, flatten: bool = False) -> Var:
    """A group norm; in float16 its squares do not overflow, although its input is in thousands."""
    half = m.graph.dtype == np.float16
    return group_norm(m, x, groups=c.groups, epsilon=EPSILON, flatten=flatten, scaled=half)


def resnet(m: Module, c: VAEConfig, x: Var, channels: int) -> Var:
    """ResnetBlock2D without a time embedding: [1, C, H, W] → [1, channels, H, W]."""
    skip = x
    x = conv(m["conv1"], norm_act(m["norm1"], c, x), channels, 3)
    x = conv(m["conv2"], norm_act(m["norm2"], c, x), channels, 3)
    if skip.shape[1] != channels:
        skip = conv(m["conv_shortcut"], skip, channels)
    return m.emit("add", name="", x=skip, y=x)


def downsample(m: Module, x: Var) -> Var:
    """Halves height and width; torch pads below and to the right only."""
    x = m.emit("pad", x=x, pad=[0, 0, 0, 0, 0, 1, 0, 1], mode="constant", constant_val=0.0)
    return conv(m["conv"], x, x.shape[1], 3, stride=2, padding=0)


def mid_block(m: Module, c: VAEConfig, x: Var) -> Var:
    """UNetMidBlock2D: resnet, attention, resnet."""
    channels = c.channels[-1]
    x = resnet(m["resnets"][0], c, x, channels)
    if c.mid_attention:
        x = attention(m["attentions"][0], c, x)
    return resnet(m["resnets"][1], c, x, channels)


def attention(m: Module, c: VAEConfig, x: Var) -> Var:
    """Self-attention over all pixels with one head: [1, C, H, W] → [1, C, H, W]."""
    _, channels, height, width = x.shape
    length = height * width
    skip = x
    x = vae_norm(m["group_norm"], c, x, flatten=True)
    x = m.emit("transpose", x=x, perm=[0, 2, 1])  # [1, S, C]
    q, k, v = (
        m[name].emit("reshape", x=linear(m[name], x, channels), shape=[1, length, 1, channels])
        for name in ("to_q", "to_k", "to_v")
    )
    q = m.emit("mul", x=q, y=channels**-0.5)
    q, k, v = (m.emit("transpose", x=t, perm=[0, 2, 1, 3]) for t in (q, k, v))  # [1, 1, S, C]
    weights = m.emit("matmul", x=q, y=k, transpose_x=False, transpose_y=True)  # [1, 1, S, S]
    weights = m.emit("softmax", x=weights, axis=-1)
    x = m.emit("matmul", x=weights, y=v, transpose_x=False, transpose_y=False)
    x = m.emit("transpose", x=x, perm=[0, 2, 1, 3])  # [1, S, 1, C]
    x = m.emit("reshape", x=x, shape=[1, length, channels])
    x = m.emit("transpose", x=linear(m["to_out"][0], x, channels), perm=[0, 2, 1])
    x = m.emit("reshape", x=x, shape=[1, channels, height, width])
    return m.emit("add", name="", x=x, y=skip)
