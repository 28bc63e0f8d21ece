"""Torch modules and MIL values: what each module of the reference gives, and which value it is.

A value belongs to a module if it has the module's path for a name, as our own graphs have it, or
if the op that makes it takes the module's `weight`, as in graphs traced from torch. So packages of
any converter that keeps the names of weights can be followed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from verify.artifact.stored import ADDED
from verify.mil import Op, Program
from verify.reference.reference import Reference

WEIGHTED = ("conv", "linear", "layer_norm", "batch_norm", "gather")  # ops that are a whole module
PARAMETERS = ("weight", "gamma", "x")  # where such an op takes the module's `weight`


Outputs = dict[str, Tensor]


def module_outputs(reference: Reference, inputs: Mapping[str, Tensor]) -> tuple[Outputs, Outputs]:
    """The output of every module that runs once, by its path, and those of the whole component.

    All are float32 on the CPU. A module that runs more than once, such as a shared activation, has
    no output of its own.
    """
    outputs: dict[str, Tensor] = {}
    again = set()

    def keep(path: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            output = getattr(output, "sample", output)
            if isinstance(output, tuple) and output:
                output = output[0]
            if path in outputs:
                again.add(path)
            elif isinstance(output, Tensor) and output.is_floating_point():
                outputs[path] = output.float().cpu().clone()

        return hook

    handles = [
        module.register_forward_hook(keep(path)) for path, module in reference.modules().items()
    ]
    try:
        results = reference(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: value for path, value in outputs.items() if path not in again}, results


def weight_names(program: Program, tensors: Collection[str]) -> dict[str, str]:
    """MIL constant, or decoded weight → the checkpoint's tensor that it is named after."""
    named = {tensor.replace(".", "_"): tensor for tensor in tensors}
    found = {}
    for op in program.ops:
        if op.type == "const" or op.type.startswith("constexpr_"):
            for name, _ in op.outputs:
                tensor = named.get(name) or named.get(ADDED.sub("", name))
                if tensor is not None:
                    found[name] = tensor
    return found


def module_values(
    program: Program, outputs: Mapping[str, Tensor], weights: Mapping[str, str]
) -> dict[str, tuple[str, Tensor]]:
    """MIL value → (module path, what the module gave, in the value's shape).

    Args:
        outputs: of `module_outputs`.
        weights: of `weight_names`.
    """
    paths = {path.replace(".", "_"): path for path in outputs}
    found: dict[str, tuple[str, Tensor]] = {}
    for op in program.ops:
        if len(op.outputs) != 1:
            continue
        name, type_ = op.outputs[0]
        path = paths.get(name) or _weighted(op, weights)
        if path not in outputs:
            continue
        value = aligned(outputs[path], type_.shape)
        if value is not None:
            found[name] = path, value
    return found


def _weighted(op: Op, weights: Mapping[str, str]) -> str:
    """The module whose `weight` an op takes; empty if it takes none."""
    if op.type in WEIGHTED:
        for parameter in PARAMETERS:
            for value in op.inputs.get(parameter, []):
                path, _, kind = weights.get(str(value), "").rpartition(".")
                if kind == "weight":
                    return path
    return ""


def aligned(value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A module's output in the shape of a MIL value; None if it cannot be the same thing.

    Torch's transformers are [B, S, C], Core ML's [B, C, 1, S] or, before and after, [B, C, H, W].
    """
    if math.prod(shape) != value.numel() or not shape or value.dim() == 0:
        return None
    if tuple(value.shape) == shape:
        return value
    if value.dim() == 3 and len(shape) == 4 and value.shape[::2] == torch.Size(shape[:2]):
        return value.transpose(1, 2).reshape(shape)
    if value.dim() == 4 and len(shape) == 3 and value.shape[:2] == torch.Size(shape[:2]):
        return value.flatten(2)
    long, short = [[n for n in s if n != 1] for s in (tuple(value.shape), shape)]
    return value.reshape(shape) if long == short else None


def module_of(op: Op, paths: Collection[str], weights: Mapping[str, str]) -> str | None:
    """The torch module that an op came from: by its weight, or else by its name."""
    taken = _weighted(op, weights)
    if taken:
        return taken
    named = {path.replace(".", "_"): path for path in paths}
    words = op.name.split("_")
    for end in range(len(words), 0, -1):
        path = named.get("_".join(words[:end]))
        if path is not None:
            return path
    return None
