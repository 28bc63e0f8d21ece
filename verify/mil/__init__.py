"""An ML Program read from its package and run with PyTorch, on any machine."""

from verify.mil.evaluator import Evaluator
from verify.mil.program import (
    Block,
    Constant,
    Feature,
    Op,
    Program,
    TensorType,
    histogram,
    load_program,
)

__all__ = [
    "Block",
    "Constant",
    "Evaluator",
    "Feature",
    "Op",
    "Program",
    "TensorType",
    "histogram",
    "load_program",
]
