"""The layers that SDXL's networks share, op for op as Apple's converter leaves them.

Layout: the UNet and the VAE's convolutions are [B, C, H, W], the UNet's transformers [B, C, 1, S].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Var

from convert.errors import InputError
from convert.networks.graph import Module

# Apple's 1e-5 would cost a VAE in float32 30 dB: batch_norm divides by sqrt(1 + epsilon).
BATCH_NORM_EPSILON = {2: np.float16(1e-5), 4: np.float32(1e-12)}

LARGEST_SQUARED = 64.0  # of a group norm in float16: squares have room for a factor of 16

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "silu": ("silu", {}),
    "swish": ("silu", {}),
    "gelu": ("gelu", {"mode": "EXACT"}),
    "gelu_new": ("gelu", {"mode": "TANH_APPROXIMATION"}),
    "relu": ("relu", {}),
}


def activation(m: Module, name: str, x: Var) -> Var:
    """The activation that a config calls `name`; raises InputError for one we do not know."""
    if name == "quick_gelu":  # x · sigmoid(1.702 x), as OpenAI's CLIP has it
        gate = m.emit("sigmoid", x=m.emit("mul", x=x, y=1.702))
        return m.emit("mul", name="quick_gelu", x=x, y=gate)
    if name not in ACTIVATIONS:
        raise InputError(
            f"unknown activation {name!r}",
            where=m.path,
            hint=f"Known: {', '.join([*ACTIVATIONS, 'quick_gelu'])}.",
        )
    op, options = ACTIVATIONS[name]
    return m.emit(op, x=x, **options)


def conv(
    m: Module,
    x: Var,
    channels: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    linear: bool = False,
) -> Var:
    """A convolution [B, C, H, W] → [B, channels, H', W'].

    Args:
        padding: on every side; `kernel // 2` if None.
        linear: the weight is that of a linear layer, [out, in].
    """
    padding = kernel // 2 if padding is None else padding
    shape = (channels, x.shape[1], kernel, kernel)
    inputs = {"weight": m.weight("weight", shape[:2] if linear else shape, shape)}
    if bias:
        inputs["bias"] = m.weight("bias", (channels,))
    return m.emit(
        "conv",
        name="",
        x=x,
        **inputs,
        strides=[stride, stride],
        pad_type="custom" if padding else "valid",
        pad=[padding] * 4,
        dilations=[1, 1],
        groups=1,
    )


def linear(m: Module, x: Var, features: int, *, bias: bool = True) -> Var:
    """A linear layer over the last axis: [B, S, C] → [B, S, features]."""
    weight = m.weight("weight", (features, x.shape[-1]))
    if bias:
        return m.emit("linear", name="", x=x, weight=weight, bias=m.weight("bias", (features,)))
    zeros = np.zeros(features, m.graph.dtype)
    return m.emit("linear", name="", x=x, weight=weight, bias=m.graph.constant("zeros", zeros))


def layer_norm(m: Module, x: Var, *, axis: int, epsilon: float) -> Var:
    """Layer norm over one axis, with a learned affine."""
    channels = x.shape[axis]
    return m.emit(
        "layer_norm",
        name="",
        x=x,
        axes=[axis],
        gamma=m.weight("weight", (channels,)),
        beta=m.weight("bias", (channels,)),
        epsilon=epsilon,
    )


def group_norm(
    m: Module,
    x: Var,
    *,
    groups: int,
    epsilon: float,
    flatten: bool = False,
    scaled: bool = False,
) -> Var:
    """Group norm over [B, C, H, W] with a learned affine.

    MIL has no group norm; this is the sequence that coremltools' converter makes of torch's.
    With `flatten` the result is [B, C, H·W], for which the affine cannot be a `batch_norm`.
    With `scaled` groups with values of more than `LARGEST_SQUARED` are divided before they are
    squared, so that no square overflows in float16; what is divided comes out the same.
    """
    batch, channels, *space = x.shape
    if channels % groups:
        raise InputError(
            f"{channels} channels cannot be normalised in {groups} groups",
            where=m.path,
            hint="`norm_num_groups` in config.json must divide every width.",
        )
    if flatten:
        space = [math.prod(space)]
    axes = list(range(2, 3 + len(space)))
    x = m.emit("reshape", x=x, shape=[batch, groups, channels // groups, *space])
    x = m.emit("sub", x=x, y=m.emit("reduce_mean", x=x, axes=axes, keep_dims=True))
    x = _within(m, x, axes) if scaled else x
    square = m.emit("square", x=x)
    variance = m.emit("reduce_mean", x=square, axes=axes, keep_dims=True)
    deviation = m.emit("sqrt", x=m.emit("add", x=variance, y=epsilon))
    x = m.emit("real_div", x=x, y=deviation)
    x = m.emit("reshape", x=x, shape=[batch, channels, *space])
    if flatten:
        gamma = m.weight("weight", (channels,), (1, channels, 1))
        beta = m.weight("bias", (channels,), (1, channels, 1))
        return m.emit("add", name="", x=m.emit("mul", x=x, y=gamma), y=beta)
    dtype = m.graph.dtype
    return m.emit(
        "batch_norm",
        name="",
        x=x,
        mean=m.graph.constant(f"zeros_{channels}", np.zeros(channels, dtype)),
        variance=m.graph.constant(f"ones_{channels}", np.ones(channels, dtype)),
        gamma=m.weight("weight", (channels,)),
        beta=m.weight("bias", (channels,)),
        epsilon=BATCH_NORM_EPSILON[dtype.itemsize],
    )


def _within(m: Module, x: Var, axes: list[int]) -> Var:
    """`x` where all of a group are below `LARGEST_SQUARED`, else divided so that they are."""
    most = m.emit("reduce_max", x=x, axes=axes, keep_dims=True)
    least = m.emit("reduce_min", x=x, axes=axes, keep_dims=True)
    high = m.emit("mul", x=most, y=1 / LARGEST_SQUARED)
    low = m.emit("mul", x=least, y=-1 / LARGEST_SQUARED)
    divisor = m.emit("maximum", x=m.emit("maximum", x=high, y=low), y=1.0)
    return m.emit("real_div", x=x, y=divisor)


def upsample(m: Module, x: Var, size: tuple[int, int]) -> Var:
    """Nearest-neighbour upsampling by two to `size`, then a 3×3 convolution.

    Where a level of the UNet has an odd height or width, the level above it is one row or column
    short of twice it, and the surplus is cut off; that equals torch's interpolation to that size.
    """
    two = np.float32(2)
    x = m.emit("upsample_nearest_neighbor", x=x, scale_factor_height=two, scale_factor_width=two)
    if tuple(x.shape[2:]) != size:
        x = m.emit(
            "slice_by_index",
            x=x,
            begin=[0, 0, 0, 0],
            end=[*x.shape[:2], *size],
            end_mask=[True, True, False, False],
        )
    return conv(m["conv"], x, x.shape[1], 3)


def cast(m: Module, x: Var, dtype: str, *, name: str | None = None) -> Var:
    """A cast to the MIL dtype `dtype`."""
    return m.emit("cast", name=name, x=x, dtype=dtype)


def to_float32(m: Module, x: Var) -> Var:
    """`x` as float32, the dtype of every output; Core ML would otherwise hand out float16."""
    return x if m.graph.dtype == np.float32 else cast(m, x, "fp32")
