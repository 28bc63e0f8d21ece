"""A network as an `.mlpackage`: protobuf, weight file and manifest, appearing at once.

coremltools' own exporter validates the program eleven times, prints it before and after each pass,
and writes the weights three times. The graphs here are in their final form, so none of that is
needed: one walk over the program, one pass over the weights.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coremltools import proto
from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.backend.mil.helper import (
    cast_to_framework_io_dtype,
    create_immediate_value,
    create_scalar_value,
    create_valuetype_tensor,
    types_to_proto_primitive,
)
from coremltools.converters.mil.mil import Operation, Var, types

from convert.files.disk import link
from convert.networks.graph import Network
from convert.values import Format
from convert.weights.weight_file import Layout

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
MANIFEST = Path("Manifest.json")
BLOB_PATH = "@model_path/weights/weight.bin"
# Core ML names the entries by UUID; ours follow from what they name, so packages are repeatable.
NAMESPACE = uuid.UUID("6f6b7f0a-52b6-5a86-9ff1-4d3c5d2e7a11")


@dataclass(frozen=True)
class Description:
    """What a model says of itself, beside its graph."""

    short: str
    author: str
    license: str
    version: str
    inputs: Mapping[str, str]  # name → description
    outputs: Mapping[str, str]
    user: Mapping[str, str] = field(default_factory=dict)


def assemble(folder: Path, model: bytes, weights: Path) -> None:
    """Lay out a package in `folder` around a weight file, which is linked, not copied."""
    link(weights, folder / WEIGHTS)
    (folder / MODEL).write_bytes(model)
    (folder / MANIFEST).write_bytes(manifest())


def serialise(
    network: Network,
    plan: Layout,
    description: Description,
    *,
    format: Format,
) -> bytes:
    """The model specification (protobuf); equal networks give equal bytes."""
    function = network.program.functions["main"]
    block = proto.MIL_pb2.Block(outputs=[var.name for var in function.outputs])
    for op in function.operations:
        if not _is_inlined(op):
            block.operations.append(_operation(op, plan))
    main = proto.MIL_pb2.Function(opset=format.opset)
    main.block_specializations[format.opset].CopyFrom(block)
    for name, var in function.inputs.items():
        main.inputs.add(name=name, type=_tensor_type(var))
    model = proto.Model_pb2.Model(specificationVersion=format.specification_version)
    model.mlProgram.version = 1
    model.mlProgram.functions["main"].CopyFrom(main)
    for name, var in function.inputs.items():
        model.description.input.append(_feature(var, description.inputs[name], is_output=False))
    for var in function.outputs:
        model.description.output.append(
            _feature(var, description.outputs[var.name], is_output=True)
        )
    metadata = model.description.metadata
    metadata.shortDescription = description.short
    metadata.author = description.author
    metadata.license = description.license
    metadata.versionString = description.version
    for key, value in sorted(description.user.items()):
        metadata.userDefined[key] = value
    return model.SerializeToString(deterministic=True)


def _operation(op: Operation, plan: Layout) -> Any:
    message = proto.MIL_pb2.Operation(type=op.op_type)
    message.attributes["name"].CopyFrom(create_scalar_value(op.name))
    for var in op.outputs:
        message.outputs.add(name=var.name, type=_type(var))
    if op.op_type == "const":
        message.attributes["val"].CopyFrom(_value(op.outputs[0], plan))
        return message
    if op.op_type.startswith("constexpr_"):
        for param, var in op.inputs.items():
            if op.opset_version < AvailableTarget.iOS18:
                message.attributes[param].CopyFrom(_value(var, plan))
            else:
                message.inputs[param].arguments.add(value=_value(var, plan))
        return message
    for param, value in op.inputs.items():
        argument = message.inputs[param]
        for var in value if isinstance(value, list | tuple) else [value]:
            argument.arguments.add(name=var.name)
    return message


def _is_inlined(op: Operation) -> bool:
    """Whether a constant stands in the attributes of the ops that use it instead of by itself."""
    users = op.outputs[0].child_ops
    return (
        op.op_type == "const"
        and bool(users)
        and all(user.op_type.startswith("constexpr_") for user in users)
    )


def _value(var: Var, plan: Layout) -> Any:
    if var.name not in plan.offsets:
        return create_immediate_value(var)
    return proto.MIL_pb2.Value(
        type=_type(var),
        blobFileValue=proto.MIL_pb2.Value.BlobFileValue(
            fileName=BLOB_PATH, offset=plan.offsets[var.name]
        ),
    )


def _type(var: Var) -> Any:
    if types.is_tensor(var.sym_type):
        return _tensor_type(var)
    return create_valuetype_tensor((), types_to_proto_primitive(var.sym_type))


def _tensor_type(var: Var) -> Any:
    return create_valuetype_tensor(
        var.sym_type.get_shape(), types_to_proto_primitive(var.sym_type.get_primitive())
    )


def _feature(var: Var, text: str, *, is_output: bool) -> Any:
    feature = proto.Model_pb2.FeatureDescription(name=var.name, shortDescription=text)
    feature.type.multiArrayType.shape.extend(int(n) for n in var.shape)
    feature.type.multiArrayType.dataType = cast_to_framework_io_dtype(var, is_output)
    return feature


def manifest() -> bytes:
    """Manifest.json, the same for every package."""
    entries = {
        "model.mlmodel": ("CoreML Model Specification", "com.apple.CoreML/model.mlmodel"),
        "weights": ("CoreML Model Weights", "com.apple.CoreML/weights"),
    }
    ids = {name: str(uuid.uuid5(NAMESPACE, name)).upper() for name in entries}
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            ids[name]: {
                "author": "com.apple.CoreML",
                "description": text,
                "name": name,
                "path": path,
            }
            for name, (text, path) in entries.items()
        },
        "rootModelIdentifier": ids["model.mlmodel"],
    }
    # To the byte as coremltools writes it, because it does so whenever it opens a package.
    return (json.dumps(content, indent=4, sort_keys=True) + "\n").encode()
