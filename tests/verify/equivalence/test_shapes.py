"""What shapes ops give: the same that PyTorch gives, and a reason where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verify.equivalence.nodes import graph_of
from verify.equivalence.shapes import FUNCTIONS, false_types
from verify.mil import Block, Constant, Op, Program, TensorType

I, O = (2, 6, 4, 10), (2, 6, 4, 10)  # noqa: E741


def one_op(type_: str, inputs: dict[str, Any], *outputs: tuple[int, ...]) -> Program:
    """A program of one op; tuples are its inputs' shapes, lists of tuples several of them."""
    given: dict[str, TensorType] = {}

    def bound(value: Any) -> str | Constant:
        if isinstance(value, tuple):
            given[f"v{len(given)}"] = TensorType("fp16", value)
            return f"v{len(given) - 1}"
        array = np.array(value)
        dtype = {"i": "int32", "b": "bool", "U": "string", "f": "fp32"}[array.dtype.kind]
        return Constant(TensorType(dtype, array.shape), array)

    arguments = {
        name: [bound(v) for v in value]
        if isinstance(value, list) and isinstance(value[0], tuple)
        else [bound(value)]
        for name, value in inputs.items()
    }
    outs = [(f"o{i}", TensorType("fp16", shape)) for i, shape in enumerate(outputs)]
    block = Block(given, [Op(type_, "op", arguments, {}, outs)], [name for name, _ in outs])
    return Program(Path("p"), "CoreML7", 8, [], [], block)


FIT: list[tuple[str, dict[str, Any], list[tuple[int, ...]]]] = [
    ("silu", {"x": I}, [I]),
    ("add", {"x": (2, 1, 4), "y": (3, 1)}, [(2, 3, 4)]),
    ("select", {"cond": (1, 4), "a": (3, 1), "b": (3, 4)}, [(3, 4)]),
    ("layer_norm", {"x": I, "axes": [1], "gamma": (6,), "beta": (6,)}, [I]),
    ("batch_norm", {"x": I, "mean": (6,), "variance": (6,)}, [I]),
    ("reduce_mean", {"x": I, "axes": [1, -1], "keep_dims": True}, [(2, 1, 4, 1)]),
    ("reduce_argmax", {"x": (1, 77), "axis": -1, "keep_dims": False}, [(1,)]),
    ("reshape", {"x": I, "shape": [0, 3, -1]}, [(2, 3, 80)]),
    ("transpose", {"x": I, "perm": [0, 3, 2, -3]}, [(2, 10, 4, 6)]),
    ("expand_dims", {"x": (2, 3), "axes": [-1, 0]}, [(1, 2, 3, 1)]),
    ("stack", {"values": [(3, 4), (3, 4)], "axis": 1}, [(3, 2, 4)]),
    ("concat", {"values": [(2, 3), (2, 4)], "axis": -1}, [(2, 7)]),
    ("split", {"x": I, "split_sizes": [1, 5], "axis": 1}, [(2, 1, 4, 10), (2, 5, 4, 10)]),
    (
        "slice_by_index",
        {"x": I, "begin": [0, 2, 0, -4], "end": [0, 6, 0, 10], "stride": [1, 3, 1, 1],
         "end_mask": [True, False, True, False]},
        [(2, 2, 4, 4)],
    ),
    ("pad", {"x": I, "pad": [0, 1, 2, 0]}, [(2, 6, 5, 12)]),
    (
        "upsample_nearest_neighbor",
        {"x": I, "scale_factor_height": 2.0, "scale_factor_width": 3.0},
        [(2, 6, 8, 30)],
    ),
    (
        "conv",
        {"x": (1, 4, 9, 8), "weight": (5, 4, 3, 3), "bias": (5,), "pad_type": "custom",
         "pad": [1, 1, 0, 0], "strides": [2, 2], "dilations": [1, 2]},
        [(1, 5, 5, 2)],
    ),
    ("linear", {"x": (1, 7, 4), "weight": (6, 4), "bias": (6,)}, [(1, 7, 6)]),
    ("matmul", {"x": (2, 1, 5, 3), "y": (4, 5, 7), "transpose_x": True}, [(2, 4, 3, 7)]),
    ("einsum", {"values": [(1, 2, 3, 4), (1, 4, 3, 5)], "equation": "nchw,nwhu->nchu"},
     [(1, 2, 3, 5)]),
    ("gather", {"x": (99, 8), "indices": (1, 77), "axis": 0}, [(1, 77, 8)]),
    ("gather_nd", {"x": (1, 77, 8), "indices": (1, 2)}, [(1, 8)]),
    ("constexpr_lut_to_dense", {"indices": (3,), "lut": (64,), "shape": [2, 2]}, [(2, 2)]),
    ("constexpr_lut_to_dense", {"indices": (3, 2), "lut": (3, 1, 4, 1)}, [(3, 2)]),
    ("constexpr_affine_dequantize", {"quantized_data": (3, 2), "scale": (3,)}, [(3, 2)]),
]  # fmt: skip
UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("add", {"x": (2, 3), "y": (2, 4)}, r"takes \[2, 3\], \[2, 4\] together"),
    ("softmax", {"x": (2, 3), "axis": 2}, "has axis 2 of 2"),
    ("layer_norm", {"x": I, "axes": [1], "gamma": (4,)}, r"`gamma` is \[4\]"),
    ("reshape", {"x": I, "shape": [2, 7, -1]}, "makes"),
    ("transpose", {"x": (2, 3), "perm": [0, 0]}, "permutation"),
    ("concat", {"values": [(2, 3), (3, 3)], "axis": 1}, "joins"),
    ("stack", {"values": [(2,), (3,)], "axis": 0}, "stacks"),
    ("split", {"x": I, "split_sizes": [1, 4], "axis": 1}, "splits 6"),
    ("slice_by_index", {"x": (4,), "begin": [2], "end": [5]}, "takes 2 to 5 of 4"),
    ("conv", {"x": (1, 5, 9, 8), "weight": (5, 4, 3, 3)}, "with a weight of"),
    ("conv", {"x": (1, 4, 9, 8), "weight": (5, 4, 3, 3), "bias": (4,)}, "bias"),
    ("linear", {"x": (1, 7, 4), "weight": (6, 5)}, "with a weight of"),
    ("matmul", {"x": (5, 3), "y": (5, 7)}, "multiplies"),
    ("einsum", {"values": [(1, 2, 3, 4), (1, 5, 3, 5)], "equation": "nchw,nwhu->nchu"},
     "w has two sizes"),
    ("constexpr_lut_to_dense", {"indices": (4,), "lut": (64,), "shape": [2, 2]}, "4. bytes"),
    ("pad", {"x": (2,)}, "do not go together"),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "inputs", "outputs"), FIT)
def test_an_op_gives_its_shape(
    type_: str, inputs: dict[str, Any], outputs: list[tuple[int, ...]]
) -> None:
    assert false_types(graph_of(one_op(type_, inputs, *outputs))) == ([], {})
    wrong = [(*outputs[0][:-1], outputs[0][-1] + 1), *outputs[1:]]
    (difference,), _ = false_types(graph_of(one_op(type_, inputs, *wrong)))
    assert "declares" in difference.what


@pytest.mark.parametrize(("type_", "inputs", "why"), UNFIT)
def test_what_does_not_fit_is_told(type_: str, inputs: dict[str, Any], why: str) -> None:
    (difference,), _ = false_types(graph_of(one_op(type_, inputs, (1,))))
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(difference.what)


def test_ops_without_a_function_are_counted() -> None:
    assert false_types(graph_of(one_op("cumsum", {"x": I}, O))) == ([], {"cumsum": 1})
    assert "cumsum" not in FUNCTIONS
