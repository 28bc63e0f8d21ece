"""MIL's activations: elementwise functions of one tensor, some with parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op


@op("silu", kind="map")
def silu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x · sigmoid(x), of any shape.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    return F.silu(x) if out is None else torch.ops.aten.silu.out(x, out=out)


@op("relu", kind="map")
def relu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """max(x, 0), of any shape.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    return F.relu(x, inplace=out is x)


@op("relu6", kind="map")
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6), of any shape.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    return x.clamp(0, 6)


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x ≥ 0, else alpha · x; of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return F.leaky_relu(x, alpha)


@op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """x where x > 0, else alpha · (eˣ − 1); of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return F.elu(x, alpha)


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x [N, C, *D], alpha [C]: x where x ≥ 0, else alpha · x of its channel.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return F.prelu(x, alpha)


@op("softplus")
def softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ), of any shape, without overflow.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    return torch.logaddexp(x, torch.zeros_like(x))


@op("softsign")
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|), of any shape.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    return F.softsign(x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """min(max(alpha · x + beta, 0), 1), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return (x * alpha + beta).clamp_(0, 1)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    """alpha · x + beta, of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return x * alpha + beta


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT", out: Tensor | None = None) -> Tensor:
    """x · Φ(x), of any shape; `mode` says how Φ, the normal distribution, is computed.

    Source: coremltools `ops/defs/iOS15/activation.py`.
    """
    if mode in ("EXACT", "TANH_APPROXIMATION"):
        approximate = "none" if mode == "EXACT" else "tanh"
        if out is None:
            return F.gelu(x, approximate=approximate)
        return torch.ops.aten.gelu.out(x, approximate=approximate, out=out)
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown gelu mode {mode!r}")


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(x, beta) where x ≥ 0, else min(alpha · x, beta); of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return F.leaky_relu(x, alpha).clamp_max_(beta)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · tanh(beta · x), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return torch.tanh(x * beta) * alpha


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x [N, C, *D], alpha and beta [C]: alpha · ln(1 + e^(beta · x)) by channel.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    shape = (-1, *[1] * (x.dim() - 2))
    return softplus(x * beta.reshape(shape)) * alpha.reshape(shape)


@op("thresholded_relu", kind="map")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x ≥ alpha, else 0; of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/activation.py`.
    """
    return torch.where(x >= alpha, x, 0)
