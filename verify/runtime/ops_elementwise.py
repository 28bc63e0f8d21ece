"""Elementwise MIL ops: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.runtime.ops import TORCH_DTYPES, op


def _binary(types: str, function: Any) -> None:
    def implementation(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
        return function(x, y, out=out)

    op(types, kind="map")(implementation)


def _unary(types: str, function: Any, exact_in_half: bool) -> None:
    def implementation(x: Tensor, out: Tensor | None = None) -> Tensor:
        return function(x, out=out)

    op(types, kind="map" if exact_in_half else "math")(implementation)


# Source: coremltools `ops/defs/iOS15/elementwise_binary.py`. x and y are broadcast.
for _type, _function in {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}.items():
    _binary(_type, _function)

# Source: coremltools `ops/defs/iOS15/elementwise_unary.py`, and `activation.py` for the sigmoid.
# Not exact in half: torch's CPU kernels for these differ from fp32 rounded once.
for _type, _function, _exact in (
    ("abs", torch.abs, True),
    ("exp", torch.exp, False),
    ("exp2", torch.exp2, False),
    ("tanh", torch.tanh, False),
    ("sigmoid", torch.sigmoid, True),
    ("sqrt", torch.sqrt, False),
    ("sin", torch.sin, False),
    ("cos", torch.cos, False),
    ("tan", torch.tan, False),
    ("atan", torch.atan, False),
    ("asin", torch.asin, False),
    ("acos", torch.acos, False),
    ("sinh", torch.sinh, False),
    ("cosh", torch.cosh, False),
    ("atanh", torch.atanh, False),
    ("erf", torch.erf, False),
    ("floor", torch.floor, True),
    ("ceil", torch.ceil, True),
    ("round", torch.round, True),
    ("sign", torch.sign, True),
):
    _unary(_type, _function, _exact)


@op("square", kind="map")
def square(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x², of any shape.

    Source: coremltools `ops/defs/iOS15/elementwise_unary.py`.
    """
    return torch.mul(x, x, out=out)  # torch.square is several times slower on fp16


@op("real_div", kind="map")
def real_div(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x / y, broadcast; integers give floats, which the declared dtype makes integers again.

    Source: coremltools `ops/defs/iOS15/elementwise_binary.py`.
    """
    return torch.div(x, y, out=out if x.is_floating_point() else None)


@op("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """⌊x / y⌋, broadcast, in the dtype of x and y.

    Source: coremltools `ops/defs/iOS15/elementwise_binary.py`.
    """
    return torch.div(x, y, rounding_mode="floor")


@op("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """x − y · ⌊x / y⌋, broadcast: the remainder has the sign of y.

    Source: coremltools `ops/defs/iOS15/elementwise_binary.py`.
    """
    return torch.remainder(x, y)


@op("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """xʸ, broadcast.

    Source: coremltools `ops/defs/iOS15/elementwise_binary.py`.
    """
    return torch.pow(x, y)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / √(x + epsilon), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/elementwise_unary.py`.
    """
    return (x + epsilon).rsqrt_()


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/elementwise_unary.py`.
    """
    return (x + epsilon).reciprocal_()


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """ln(x + epsilon), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/elementwise_unary.py`.
    """
    return (x + epsilon).log_()


@op("clip", kind="map")
def clip(x: Tensor, alpha: float, beta: float, out: Tensor | None = None) -> Tensor:
    """min(max(x, alpha), beta), of any shape.

    Source: coremltools `ops/defs/{iOS15,iOS17}/elementwise_unary.py`.
    """
    return torch.clamp(x, alpha, beta, out=out)


@op("threshold", kind="map")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """max(x, alpha), of any shape.

    Source: coremltools `ops/defs/iOS15/elementwise_unary.py`.
    """
    return x.clamp_min(alpha)


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


# Source: coremltools `ops/defs/iOS15/elementwise_binary.py`. Booleans; x and y are broadcast.
for _type, _function in {
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}.items():

    def _compare(x: Tensor, y: Tensor, *, _function: Any = _function) -> Tensor:
        return _function(x, y)

    op(_type, kind="map")(_compare)


@op("logical_not", kind="map")
def logical_not(x: Tensor) -> Tensor:
    """Not x, of any shape.

    Source: coremltools `ops/defs/iOS15/elementwise_unary.py`.
    """
    return x.logical_not()


@op("select", kind="move")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond, else b; cond, a and b are broadcast.

    Source: coremltools `ops/defs/iOS15/control_flow.py`.
    """
    return torch.where(cond, a, b)


@op("cast", kind="move")
def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats go to integers towards zero, and wrap, as numpy's `astype` does.

    Source: coremltools `ops/defs/{iOS15,iOS17}/elementwise_unary.py`.
    """
    if dtype in ("fp16", "fp32"):
        # The rounding to fp16 is the evaluator's, by the declared type of the output.
        return x if x.is_floating_point() else x.float()
    if dtype == "bool":
        return x != 0
    if dtype == "uint16":
        return x.to(torch.int64).bitwise_and(0xFFFF)
    return x.to(torch.int64).to(TORCH_DTYPES[dtype])
