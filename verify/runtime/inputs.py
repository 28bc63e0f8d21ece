"""What a program is given to run: checked against what it declares."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from convert.errors import InputError
from verify.mil.program import Program


def checked_inputs(
    program: Program, inputs: Mapping[str, np.ndarray | Tensor]
) -> dict[str, Tensor]:
    """One tensor per input of the program, in the declared shape, still in its own dtype.

    float64 becomes float32: that is what Core ML is fed, and casts from.

    Raises:
        InputError: an input is missing, unknown, of the wrong shape, or has fractions where the
            program declares an integer.
    """
    declared = program.main.inputs
    for name in inputs:
        if name not in declared:
            raise InputError(
                f"unknown input {name!r}, the program has {', '.join(declared)}",
                where=program.path,
                near=(name, list(declared)),
                suggest="Did you mean {!r}?".format,
            )
    missing = [name for name in declared if name not in inputs]
    if missing:
        raise InputError(f"missing input: {', '.join(missing)}", where=program.path)
    checked = {}
    for name, type_ in declared.items():
        value = torch.as_tensor(inputs[name])
        if len(value.shape) != len(type_.shape) or any(
            size not in (-1, found) for size, found in zip(type_.shape, value.shape, strict=True)
        ):
            raise InputError(
                f"input {name!r} has the shape {list(value.shape)}, {list(type_.shape)} is needed",
                where=program.path,
            )
        if value.is_floating_point() and not type_.dtype.startswith("fp"):
            if not torch.equal(value, value.trunc()):
                raise InputError(
                    f"input {name!r} is {type_.dtype}, the array has fractions",
                    where=program.path,
                )
        elif value.dtype == torch.float64:
            value = value.float()
        checked[name] = value
    return checked


def check_names(program: Program, names: Collection[str]) -> None:
    """Raise InputError unless each of `names` is a value of the program."""
    known = {*program.main.inputs, *(name for op in program.ops for name, _ in op.outputs)}
    for name in set(names) - known:
        raise InputError(
            f"no value is called {name!r}",
            where=program.path,
            near=(name, sorted(known)),
            suggest="Did you mean {!r}?".format,
        )
