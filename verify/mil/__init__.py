"""An ML Program read from its package; `verify.runtime.evaluator` runs it with PyTorch."""

from __future__ import annotations

from verify.mil.load import load_functions, load_program
from verify.mil.program import (
    Block,
    Constant,
    Feature,
    Functions,
    Op,
    Program,
    TensorType,
    histogram,
    require_weights,
)

__all__ = [
    "Block",
    "Constant",
    "Feature",
    "Functions",
    "Op",
    "Program",
    "TensorType",
    "histogram",
    "load_functions",
    "load_program",
    "require_weights",
]
