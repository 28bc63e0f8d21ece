"""Elementwise MIL ops: arithmetic, comparison, logic, casts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verify.operations.registry import TORCH_DTYPES, op


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
