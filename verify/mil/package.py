"""An ML Program from a `.mlpackage`, or a bare `.mlmodel`: protobuf messages to plain data.

Source: coremltools `mlmodel/format/MIL.proto`, `Model.proto` and `FeatureTypes.proto`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from convert.errors import CannotExecute, InputError
from convert.files.documents import Document, LocalName, checked
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import FileMissing, read_json, shown
from convert.process.memory import uncollected
from verify.mil.aside import of_interface, of_package
from verify.mil.blob import NUMPY_DTYPES, REMEDY, SUB_BYTE_BITS, WeightFile, decode, packed_size
from verify.mil.program import (
    Block,
    Constant,
    Feature,
    Functions,
    Op,
    Program,
    TensorType,
    functions,
)

NAME = TensorType("string", ())  # of an op's name
MASKED = ("constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale")  # give masks, too


def read_model(path: Path) -> tuple[Path, Any, bytes]:
    """A package's model file, the `Model` message in it, and its bytes; it is an ML Program.

    Raises:
        InputError: there is no such package, or its model file is missing or damaged.
        CannotExecute: it is no ML Program.
    """
    if not path.exists():
        raise InputError("no such package", where=path)
    model_file = _root_model(path) if path.is_dir() else path
    if not model_file.is_file():
        raise InputError("the package's model file is missing", where=model_file, hint=REMEDY)

    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = Model_pb2.Model()
    content = model_file.read_bytes()
    refuse_pointer(model_file, content)
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InputError("not a Core ML model", where=model_file, hint=REMEDY) from error
    kind = model.WhichOneof("Type")
    if kind is None:
        raise InputError("holds no model", where=model_file, hint=REMEDY)
    if kind != "mlProgram":
        raise CannotExecute(
            f"an ML Program is needed, this model is {kind}",
            where=model_file,
            hint="Neural networks and pipelines are not supported; convert to an ML Program.",
        )
    return model_file, model, content


def package_functions(path: Path) -> Functions:
    """The functions of a package; weights stay on disk. Raises as `load_program` does."""
    model_file, model, _ = read_model(path)

    from coremltools.proto import MIL_pb2

    found = model.mlProgram.functions
    reader = _Reader(model_file, MIL_pb2.DataType)
    metadata = model.description.metadata

    def read(name: str, interface: Any) -> Program:
        function = found[name]
        if function.opset not in function.block_specializations:
            raise CannotExecute(
                f"function {name!r} has no block for its opset {function.opset!r}",
                where=model_file,
            )
        block = function.block_specializations[function.opset]
        with uncollected():
            main = reader.block(block)
        main.inputs = {i.name: reader.type(i.type) for i in function.inputs}
        if len(main.inputs) != len(function.inputs):
            raise reader.damaged("a function that takes one name twice")
        return Program(
            path=path,
            opset=function.opset,
            specification_version=model.specificationVersion,
            inputs=[feature_of(f) for f in interface.input],
            outputs=[feature_of(f) for f in interface.output],
            main=main,
            author=metadata.author,
            license=metadata.license,
            short_description=metadata.shortDescription,
            version=metadata.versionString,
            user_defined=dict(metadata.userDefined),
            function=name,
            aside=(*of_package(model, function), *of_interface(model.description, interface)),
        )

    return functions(model_file, found, model.description, read)


class _Item(Document):
    """A file or folder of the package, below `Data`."""

    path: LocalName


class _PackageManifest(Document):
    """Manifest.json of a package, as Core ML's model package reader has it."""

    items: Annotated[dict[str, _Item], Field(alias="itemInfoEntries")]
    root: Annotated[str, Field(alias="rootModelIdentifier")]


def items(package: Path) -> list[str]:
    """The files and folders below `Data` that a package's manifest names. Raises InputError."""
    manifest = package / "Manifest.json"
    return [item.path for item in _manifest(manifest).items.values()]


def _manifest(file: Path) -> _PackageManifest:
    return checked(_PackageManifest, read_json(file), file)


def _root_model(package: Path) -> Path:
    manifest = package / "Manifest.json"
    try:
        entries = _manifest(manifest)
    except FileMissing:
        raise CannotExecute("not a model package: no Manifest.json", where=package) from None
    root = entries.items.get(entries.root)
    if root is None:
        problem = f"names no item {shown(entries.root)}, its root model"
        raise InputError(problem, where=manifest)
    return package / "Data" / root.path


def feature_of(feature: Any) -> Feature:
    """A `FeatureDescription` as plain data."""
    kind = feature.type.WhichOneof("Type")
    name, description = feature.name, feature.shortDescription
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        dtype = array.ArrayDataType.Name(array.dataType).lower()
        dtype = {"float16": "fp16", "float32": "fp32", "double": "fp64"}.get(dtype, dtype)
        return Feature(name, dtype, tuple(array.shape), description)
    if kind == "imageType":
        image = feature.type.imageType
        channels = 3 if image.ColorSpace.Name(image.colorSpace) in ("RGB", "BGR") else 1
        return Feature(name, "image", (channels, image.height, image.width), description)
    return Feature(name, kind or "", (), description)


def dtypes(data_type: Any) -> dict[int, str]:
    """Our names of the protobuf's `DataType`: fp16, fp32, bf16, int32, …"""
    return {
        number: name.lower().replace("bfloat", "bf").replace("float", "fp")
        for name, number in data_type.items()
    }


def _holds(kind: str, dtype: str) -> bool:
    """Whether values of a MIL dtype may be in this field of a `TensorValue`."""
    if dtype in ("string", "bool"):
        return kind == f"{dtype}s"
    is_float = NUMPY_DTYPES.get(dtype, np.dtype(np.int8)).kind == "f"
    return kind in ("bytes", *(("floats", "doubles") if is_float else ("ints", "longInts")))


class _Reader:
    """Protobuf messages to dataclasses, for one model file."""

    def __init__(self, model_file: Path, data_type: Any) -> None:
        self.model_file = model_file
        self.files: dict[str, WeightFile] = {}
        self.dtypes = dtypes(data_type)
        self._types: dict[bytes, TensorType] = {}

    def type(self, value_type: Any) -> TensorType:
        key = value_type.SerializeToString()  # a program has few types, and names them often
        if key not in self._types:
            self._types[key] = self._type(value_type)
        return self._types[key]

    def _type(self, value_type: Any) -> TensorType:
        kind = value_type.WhichOneof("type")
        if kind != "tensorType":
            # Lists and dictionaries occur only around classifiers and control flow.
            return TensorType(kind or "none", ())
        tensor = value_type.tensorType
        shape = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1
            for d in tensor.dimensions
        )
        dtype = self.dtypes.get(tensor.dataType)
        if dtype is None or any(size < -1 for size in shape):
            raise self.damaged(f"a tensor of the data type {tensor.dataType} and shape {shape}")
        if tensor.rank == -1 or any(d.unknown.variadic for d in tensor.dimensions):
            return TensorType(dtype, (-1,), any_rank=True)
        if tensor.rank != len(shape):
            raise self.damaged(f"a tensor of rank {tensor.rank} and shape {shape}")
        return TensorType(dtype, shape)

    def block(self, block: Any) -> Block:
        return Block(
            inputs={i.name: self.type(i.type) for i in block.inputs},
            ops=[self.op(op) for op in block.operations],
            outputs=list(block.outputs),
        )

    def op(self, op: Any) -> Op:
        attributes = {k: self.constant(v) for k, v in op.attributes.items()}
        outputs = [(o.name, self.type(o.type)) for o in op.outputs]
        if op.type == "const" and not (outputs and "val" in attributes):
            raise self.damaged("a `const` without a value")
        if op.type.startswith("constexpr_") and len(outputs) != (2 if op.type in MASKED else 1):
            raise self.damaged(f"a `{op.type}` that gives {len(outputs)} values")
        given = attributes.pop("name", None)
        if given is not None and given.type != NAME:
            raise self.damaged(f"an operation whose name is of type {given.type}")
        name = "" if given is None else str(given.item())
        return Op(
            type=op.type,
            name=name or (outputs[0][0] if outputs else op.type),
            inputs={
                key: [
                    b.name if b.WhichOneof("binding") == "name" else self.constant(b.value)
                    for b in argument.arguments
                ]
                for key, argument in op.inputs.items()
            },
            attributes=attributes,
            outputs=outputs,
            blocks=[self.block(b) for b in op.blocks],
        )

    def constant(self, value: Any) -> Constant:
        type_ = self.type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            return Constant(type_, file=self.file(blob.fileName), offset=int(blob.offset))
        if type_.dtype == "listType":
            items = [self.constant(v).array() for v in value.immediateValue.list.values]
            return Constant(type_, np.array(items))
        return Constant(type_, self.immediate(value.immediateValue.tensor, type_))

    def immediate(self, tensor: Any, type_: TensorType) -> np.ndarray:
        kind = tensor.WhichOneof("value")
        count = int(np.prod(type_.shape, dtype=np.int64))
        values: Any = getattr(tensor, kind).values if kind else []
        if kind and not _holds(kind, type_.dtype):
            raise self.damaged(f"a constant of type {type_} with other values: {kind}")
        if type_.dtype == "string":
            if len(values) != count:
                raise self.damaged(f"a constant of type {type_} with {len(values)} texts")
            return np.array(list(values), dtype=np.str_).reshape(type_.shape)
        if type_.dtype not in NUMPY_DTYPES and type_.dtype not in SUB_BYTE_BITS:
            raise CannotExecute(
                f"a constant of type {type_} cannot be read",
                where=self.model_file,
                hint="Open an issue with the package.",
            )
        if kind == "bytes":
            found, needed = len(values), packed_size(type_.dtype, count)
        else:
            found, needed = len(values), count
        if found != needed:
            raise CannotExecute(
                f"a constant of type {type_} has {found} values, not {needed}",
                where=self.model_file,
            )
        if kind == "bytes":
            return decode(np.frombuffer(values, np.uint8), type_.dtype, type_.shape).copy()
        dtype = NUMPY_DTYPES.get(type_.dtype, np.dtype(np.int8))
        try:
            return np.fromiter(values, dtype, count).reshape(type_.shape)
        except (ValueError, OverflowError):
            raise self.damaged(f"a constant of type {type_} with other values") from None

    def damaged(self, what: str) -> InputError:
        """The error for a message that no program has."""
        return InputError(f"is damaged: it has {what}", where=self.model_file, hint=REMEDY)

    def file(self, name: str) -> WeightFile:
        relative = name.removeprefix("@model_path/")
        if Path(relative).is_absolute() or ".." in relative.split("/"):
            raise CannotExecute(f"the program points outside: {name!r}", where=self.model_file)
        if name not in self.files:
            self.files[name] = WeightFile(self.model_file.parent / relative)
        return self.files[name]
