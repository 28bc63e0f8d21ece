"""What a model's messages say that a `Program` does not have, by name.

Our converter writes none of it. Another size than the declared one, an input that may be left
out, a block for another system: each makes another model of the same ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What of each message a `Program` has, or what says nothing of what is computed.
_MODEL = {"specificationVersion", "description", "mlProgram"}
_PROGRAM = {"version", "functions", "docString"}
_FUNCTION = {"inputs", "opset", "block_specializations"}
_BLOCK = {"operations", "outputs"}
_DESCRIPTION = {"functions", "defaultFunctionName", "metadata", "input", "output"}
_FEATURE = {"name", "shortDescription", "type"}
_ARRAY = {"shape", "dataType"}
_IMAGE = {"width", "height", "colorSpace"}


def of_package(model: Any, function: Any) -> Iterator[str]:
    """Of a `Model` message and one of its functions."""
    yield from _others(model, _MODEL, "the model")
    program = model.mlProgram
    yield from _others(program, _PROGRAM, "the program")
    if program.version != 1:
        yield f"version {program.version} of the program"
    yield from _others(function, _FUNCTION, "the function")
    for opset, block in sorted(function.block_specializations.items()):
        if opset == function.opset:
            yield from _others(block, _BLOCK, "the block")
        else:
            yield f"a block for {opset}"


def of_interface(description: Any, interface: Any) -> Iterator[str]:
    """Of a `ModelDescription`, and of the part of it that is a function's interface."""
    yield from _others(description, _DESCRIPTION, "the description")
    for feature in (*interface.input, *interface.output):
        yield from _others(feature, _FEATURE, feature.name)
        if kind := feature.type.WhichOneof("Type"):
            yield from _others(feature.type, {kind}, feature.name)
            value = getattr(feature.type, kind)
            known = {"multiArrayType": _ARRAY, "imageType": _IMAGE}.get(kind, set())
            yield from _others(value, known, feature.name)


def _others(message: Any, known: set[str], of: str) -> Iterator[str]:
    """The fields that are set and are none of these."""
    for field, _ in message.ListFields():
        if field.name not in known:
            yield f"{field.name} of {of}"
