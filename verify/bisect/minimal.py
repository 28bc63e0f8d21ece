"""A package of just a few ops, with their inputs: the smallest that shows what is wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.package.mlpackage import BLOB_PATH, MODEL, WEIGHTS, assemble
from convert.weights.weight_file import ALIGNMENT, VERSION
from verify.bisect.ops import Segment
from verify.mil import Program
from verify.mil.blob import RECORD
from verify.mil.package import dtypes

PACKAGE, INPUTS, REFERENCE, README = (
    "minimal.mlpackage",
    "inputs.safetensors",
    "reference.safetensors",
    "README.md",
)
ARRAYS = {"fp16": "FLOAT16", "fp32": "FLOAT32", "int32": "INT32"}
HOW = """# {title}

{why}

`{package}` holds {count} ops of `{name}` that end in `{value}`. `{inputs}` holds what they are
given, `{reference}` what PyTorch float32 makes of it.

```python
from safetensors.numpy import load_file

inputs = load_file("{inputs}")
# anywhere, with sdxl-coreml:
from verify.runtime.evaluator import Evaluator
print(Evaluator("{package}").run(inputs)["{value}"])
# on a Mac:
import coremltools as ct
print(ct.models.MLModel("{package}").predict(inputs)["{value}"])
# what it should be:
print(load_file("{reference}")["{value}"])
```
"""


def write_minimal(program: Program, segment: Segment, folder: Path, why: str) -> Path:
    """Write the ops of a segment as a package of their own, their inputs and how to run them.

    Args:
        folder: must not exist, or be empty.
        why: what is wrong, for the README.

    Returns:
        The package's path.

    Raises:
        InputError: the folder holds something, or the program is not one of an `.mlpackage`.
    """
    from coremltools.proto import Model_pb2
    from safetensors.torch import save_file

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is there already and not an empty folder", where=folder)
    if not (program.path / MODEL).is_file():
        raise InputError("only ops of an .mlpackage can be written out", where=program.path)
    model = Model_pb2.Model()
    model.ParseFromString((program.path / MODEL).read_bytes())
    _keep(model, program.function)
    types = _types(model)
    _cut(model, segment, types)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weight.bin"
    _copy_weights(model, program.path / WEIGHTS, weights)
    package = folder / PACKAGE
    assemble(package, model.SerializeToString(deterministic=True), weights)
    weights.unlink()
    given = {
        name: (value.half() if _dtype(types[name]) == "fp16" else value).contiguous()
        for name, value in segment.inputs.items()
    }
    save_file(given, folder / INPUTS)
    save_file({segment.value: segment.reference.contiguous()}, folder / REFERENCE)
    text = HOW.format(
        title=segment.ops[-1].name,
        why=why,
        package=PACKAGE,
        count=len(segment.ops),
        name=program.path.name,
        value=segment.value,
        inputs=INPUTS,
        reference=REFERENCE,
    )
    (folder / README).write_text(text, "utf-8")
    return package


def _keep(model: Any, function: str) -> None:
    """Leave one function of a program, as the only one."""
    from coremltools.proto import MIL_pb2

    kept = MIL_pb2.Function.FromString(model.mlProgram.functions[function].SerializeToString())
    model.mlProgram.functions.clear()
    model.mlProgram.functions["main"].CopyFrom(kept)
    del model.description.functions[:]
    model.description.ClearField("defaultFunctionName")


def _main(model: Any) -> tuple[Any, Any]:
    """The one function of a program, and its block."""
    (function,) = model.mlProgram.functions.values()
    return function, function.block_specializations[function.opset]


def _types(model: Any) -> dict[str, Any]:
    """The protobuf type of every value."""
    function, block = _main(model)
    found = {i.name: i.type for i in function.inputs}
    found.update((o.name, o.type) for op in block.operations for o in op.outputs)
    return {
        name: type(value).FromString(value.SerializeToString()) for name, value in found.items()
    }


def _cut(model: Any, segment: Segment, types: dict[str, Any]) -> None:
    """Leave the segment's ops and the constants they take, with an interface of their own."""
    function, block = _main(model)
    wanted = {name for op in segment.ops for name, _ in op.outputs}
    kept = []
    for op in reversed(block.operations):
        if any(o.name in wanted for o in op.outputs) and op.outputs[0].name not in segment.inputs:
            kept.append(op)
            arguments = (b for a in op.inputs.values() for b in a.arguments)
            wanted |= {b.name for b in arguments if b.WhichOneof("binding") == "name"}
    kept = [type(op).FromString(op.SerializeToString()) for op in reversed(kept)]
    del block.operations[:], block.outputs[:], function.inputs[:]
    block.operations.extend(kept)
    block.outputs.append(segment.value)
    del model.description.input[:], model.description.output[:]
    model.description.metadata.shortDescription = f"The ops that end in {segment.value}"
    for name in segment.inputs:
        function.inputs.add(name=name, type=types[name])
        _describe(model.description.input.add(name=name), types[name])
    _describe(model.description.output.add(name=segment.value), types[segment.value])


def _describe(feature: Any, type_: Any) -> None:
    array = feature.type.multiArrayType
    array.shape.extend(d.constant.size for d in type_.tensorType.dimensions)
    array.dataType = array.ArrayDataType.Value(ARRAYS[_dtype(type_)])


def _dtype(type_: Any) -> str:
    from coremltools.proto import MIL_pb2

    return dtypes(MIL_pb2.DataType)[type_.tensorType.dataType]


def _copy_weights(model: Any, source: Path, target: Path) -> None:
    """The blobs that the model still refers to, in a weight file of their own."""
    places: dict[int, int] = {}
    with target.open("wb") as out:
        out.write(bytes(ALIGNMENT))
        for blob in _blobs(model):
            if blob.offset not in places:
                places[blob.offset] = _copy_blob(source, blob.offset, out)
            blob.offset = places[blob.offset]
            blob.fileName = BLOB_PATH
        out.seek(0)
        out.write(struct.pack("<II56x", len(places), VERSION))


def _copy_blob(source: Path, offset: int, out: Any) -> int:
    """Copy a record and its data; returns the record's new place."""
    import numpy as np

    with source.open("rb") as file:
        file.seek(offset)
        head = bytearray(file.read(ALIGNMENT))
        record = np.frombuffer(head, RECORD, 1)[0]
        file.seek(int(record["offset"]))
        data = file.read(int(record["size"]))
    place = out.tell()
    record["offset"] = place + ALIGNMENT
    out.write(head)
    out.write(data)
    out.write(bytes(-len(data) % ALIGNMENT))
    return int(place)


def _blobs(model: Any) -> Iterator[Any]:
    _, block = _main(model)
    for op in block.operations:
        values = [b.value for a in op.inputs.values() for b in a.arguments]
        for value in (*values, *op.attributes.values()):
            if value.WhichOneof("value") == "blobFileValue":
                yield value.blobFileValue
