"""The registry of MIL operations: how each op type is run with PyTorch.

An implementation is a function whose parameters have the names of the op's inputs in coremltools'
op definitions (`converters/mil/mil/ops/defs`). Parameters annotated `Tensor` receive tensors,
`list[Tensor]` receives a tuple input, anything else receives plain Python values. Two
parameters are about memory: `out` asks for a tensor to write the result into, or None, and may get
one of the inputs; `empty` for a function like `fresh` that uses memory again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from convert.errors import CannotExecute
from verify.mil.program import Constant, Op, Program

OpKind = Literal["move", "map", "math"]
How = Literal["tensor", "tensors", "value"]
Empty = Callable[..., Tensor]  # as `fresh`

# Where torch has no arithmetic for a MIL dtype, the next wider type holds its values.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
}


def fresh(
    shape: Sequence[int], *, dtype: torch.dtype, strides: Sequence[int] | None = None
) -> Tensor:
    """An uninitialised tensor, contiguous or with the strides of a dense one."""
    if strides is None:
        return torch.empty(shape, dtype=dtype)
    return torch.empty_strided(shape, strides, dtype=dtype)


@dataclass(frozen=True)
class Implementation:
    """How to run one op type.

    `kind` says what fp16 tensors mean to the function:
        move: elements are only moved, any dtype will do;
        map: one elementwise step, which torch computes in fp32 and rounds once even on fp16
            tensors, so they are passed as they are (half the memory traffic of the way round);
        math: everything else, which is given fp32 and rounded once at its end.
    """

    function: Callable[..., Any]
    kind: OpKind
    parameters: dict[str, How]
    required: frozenset[str]
    takes_out: bool
    takes_empty: bool


OPS: dict[str, Implementation] = {}
# What is not run, and why. README has the same list.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("cond", "while_loop"), "holds blocks of its own"),
    **dict.fromkeys(
        ("make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write"),
        "is about lists, which are no tensors",
    ),
    **dict.fromkeys(
        ("random_bernoulli", "random_categorical", "random_normal", "random_uniform"),
        "draws numbers that no two runs share, so that nothing can be compared",
    ),
    **dict.fromkeys(("read_state", "write_state"), "is about states, which last from run to run"),
    "conv_quantized": "is experimental, and how its bits are stored is not documented",
    "classify": "gives a label and a dictionary, which are no tensors",
}
F_ = TypeVar("F_", bound=Callable[..., Any])


def op(*types: str, kind: OpKind = "math") -> Callable[[F_], F_]:
    """Register a function as the implementation of the named op types."""

    def register(function: F_) -> F_:
        parameters: dict[str, How] = {}
        required = set()
        signature = inspect.signature(function, eval_str=True).parameters
        for name, parameter in signature.items():
            if name in ("out", "empty"):
                continue
            if parameter.annotation in (Tensor, Tensor | None):
                parameters[name] = "tensor"
            elif parameter.annotation == list[Tensor]:
                parameters[name] = "tensors"
            else:
                parameters[name] = "value"
            if parameter.default is inspect.Parameter.empty:
                required.add(name)
        for type_ in types:
            assert type_ not in OPS, type_
            OPS[type_] = Implementation(
                function,
                kind,
                parameters,
                frozenset(required),
                takes_out="out" in signature,
                takes_empty="empty" in signature,
            )
        return function

    return register


def tensor_of(array: np.ndarray) -> Tensor:
    """A numpy constant as a tensor in the dtype that holds its values here, without a copy."""
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int32 if array.dtype == np.uint16 else np.int64)
    return torch.from_numpy(array)


@dataclass(frozen=True)
class Call:
    """An op's implementation, and where each of its arguments comes from."""

    implementation: Implementation
    arguments: list[tuple[str, How, list[str | Constant]]]


def bind(op: Op, program: Program) -> Call:
    """Find the implementation of an op and match its inputs; none is ever ignored.

    Raises:
        CannotExecute: there is none, or it does not know an input, or lacks one.
    """
    implementation = OPS.get(op.type)
    if implementation is None:
        problem = f"no implementation of {op.type} (op {op.name!r}, opset {program.opset})"
        reason = REFUSED.get(op.type)
        raise CannotExecute(
            problem if reason is None else f"{problem}: it {reason}",
            where=program.path,
            hint="On a Mac, verify with Core ML instead."
            if reason
            else "Open an issue with the op's name; on a Mac, verify with Core ML instead.",
        )
    # iOS16 keeps the parameters of constexpr ops among the attributes.
    given: dict[str, list[str | Constant]] = {k: [v] for k, v in op.attributes.items()}
    given.update(op.inputs)
    unknown = sorted(given.keys() - implementation.parameters.keys())
    missing = sorted(implementation.required - given.keys())
    if unknown or missing:
        problems = [f"unknown inputs {', '.join(unknown)}"] * bool(unknown)
        problems += [f"missing inputs {', '.join(missing)}"] * bool(missing)
        raise CannotExecute(
            f"{op.type} {op.name!r} (opset {program.opset}): {'; '.join(problems)}",
            where=program.path,
            hint="Open an issue with the op's name.",
        )
    # Sorted, because a protobuf map has no order, and layouts follow the first argument.
    arguments = [(n, implementation.parameters[n], given[n]) for n in sorted(given)]
    return Call(implementation, arguments)
