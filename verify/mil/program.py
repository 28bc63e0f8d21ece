"""An ML Program as plain data: what a `.mlpackage` says, before anything is run.

Nothing here depends on protobuf once loaded, so another reader (the text form in a `.mlmodelc`)
can give the same `Program`. Source: coremltools `mlmodel/format/MIL.proto` and `Model.proto`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import CannotExecute, InputError
from verify.mil.blob import NUMPY_DTYPES, SUB_BYTE_BITS, WeightFile, decode, packed_size


@dataclass(frozen=True)
class TensorType:
    """A MIL dtype (`fp16`, `fp32`, `int32`, `bool`, `uint4`, `string`, …) and a shape.

    A dimension that the program leaves open is -1.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Constant:
    """A constant of a program: its value, or the place of its value in a weight file."""

    type: TensorType
    value: np.ndarray | None = None
    file: WeightFile | None = None
    offset: int = 0

    def array(self) -> np.ndarray:
        """The value, unpacked: sub-byte types as uint8 or int8, strings as str arrays.

        Raises:
            CannotExecute: the weight file cannot give it.
        """
        if self.file is None:
            assert self.value is not None
            return self.value
        return self.file.read(self.offset, self.type.dtype, self.type.shape)

    def item(self) -> Any:
        """The value as a Python scalar or nested list."""
        return self.array().tolist()


@dataclass
class Block:
    """Ops in order of execution; the names they take from outside and give back."""

    inputs: dict[str, TensorType]
    ops: list["Op"]
    outputs: list[str]


@dataclass
class Op:
    """One MIL operation; `const` ops keep their value in `attributes["val"]`."""

    type: str
    name: str
    inputs: dict[str, list[str | Constant]]
    attributes: dict[str, Constant]
    outputs: list[tuple[str, TensorType]]
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Feature:
    """An input or output as the model's interface describes it; images have dtype `image`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    description: str = ""


@dataclass
class Program:
    """An ML Program with one function.

    `inputs` and `outputs` are the public interface, `main.inputs` and `main.outputs` the
    function's own view of it.
    """

    path: Path
    opset: str
    specification_version: int
    inputs: list[Feature]
    outputs: list[Feature]
    main: Block
    author: str = ""
    license: str = ""
    short_description: str = ""
    version: str = ""
    user_defined: dict[str, str] = field(default_factory=dict)

    @property
    def ops(self) -> list[Op]:
        """The ops of the main block, `const` included."""
        return self.main.ops

    def constants(self) -> Iterator[tuple[str, Constant]]:
        """Every `const` op's name and value."""
        for op in self.main.ops:
            if op.type == "const":
                yield op.outputs[0][0], op.attributes["val"]


def load_program(path: str | Path) -> Program:
    """Read a `.mlpackage` (or a bare `.mlmodel`) that holds an ML Program; weights stay on disk.

    Raises:
        InputError: there is no such package.
        CannotExecute: it is not a readable ML Program with one function.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such package", where=path)
    if path.suffix == ".mlmodelc":
        raise CannotExecute(
            "a compiled model cannot be read here", where=path, hint="Give its .mlpackage."
        )
    model_file = _root_model(path) if path.is_dir() else path
    if not model_file.is_file():
        raise CannotExecute("the package's model file is missing", where=model_file)

    from coremltools.proto import MIL_pb2, Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = Model_pb2.Model()
    try:
        model.ParseFromString(model_file.read_bytes())
    except DecodeError as error:
        raise CannotExecute("not a Core ML model", where=model_file) from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise CannotExecute(
            f"an ML Program is needed, this model is {kind or 'empty'}",
            where=model_file,
            hint="Neural networks and pipelines are not supported; convert to an ML Program.",
        )
    functions = model.mlProgram.functions
    if len(functions) != 1:
        raise CannotExecute(
            f"one function is needed, this program has {len(functions)}: "
            + (", ".join(sorted(functions)) or "none"),
            where=model_file,
            hint="Split a multi-function package into one package per function.",
        )
    ((name, function),) = functions.items()
    if function.opset not in function.block_specializations:
        raise CannotExecute(
            f"function {name!r} has no block for its opset {function.opset!r}", where=model_file
        )
    reader = _Reader(model_file, MIL_pb2.DataType)
    main = reader.block(function.block_specializations[function.opset])
    main.inputs = {i.name: reader.type(i.type) for i in function.inputs}
    if model.description.state:
        raise CannotExecute("models with states are not supported", where=model_file)
    metadata = model.description.metadata
    return Program(
        path=path,
        opset=function.opset,
        specification_version=model.specificationVersion,
        inputs=[_feature(f) for f in model.description.input],
        outputs=[_feature(f) for f in model.description.output],
        main=main,
        author=metadata.author,
        license=metadata.license,
        short_description=metadata.shortDescription,
        version=metadata.versionString,
        user_defined=dict(metadata.userDefined),
    )


def _root_model(package: Path) -> Path:
    manifest = package / "Manifest.json"
    try:
        entries = json.loads(manifest.read_text())
        relative = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except FileNotFoundError as error:
        raise CannotExecute("not a model package: no Manifest.json", where=package) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotExecute("the manifest does not name a root model", where=manifest) from error
    if not isinstance(relative, str) or Path(relative).is_absolute() or ".." in relative.split("/"):
        raise CannotExecute(f"the manifest points outside: {relative!r}", where=manifest)
    return package / "Data" / relative


def _feature(feature: Any) -> Feature:
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


class _Reader:
    """Protobuf messages to dataclasses, for one model file."""

    def __init__(self, model_file: Path, data_type: Any) -> None:
        self.model_file = model_file
        self.files: dict[str, WeightFile] = {}
        self.dtypes = {
            number: name.lower().replace("float", "fp") for name, number in data_type.items()
        }

    def type(self, value_type: Any) -> TensorType:
        kind = value_type.WhichOneof("type")
        if kind != "tensorType":
            # Lists and dictionaries occur only around classifiers and control flow.
            return TensorType(kind or "none", ())
        tensor = value_type.tensorType
        shape = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1
            for d in tensor.dimensions
        )
        return TensorType(self.dtypes[tensor.dataType], shape)

    def block(self, block: Any) -> Block:
        return Block(
            inputs={i.name: self.type(i.type) for i in block.inputs},
            ops=[self.op(op) for op in block.operations],
            outputs=list(block.outputs),
        )

    def op(self, op: Any) -> Op:
        attributes = {k: self.constant(v) for k, v in op.attributes.items()}
        outputs = [(o.name, self.type(o.type)) for o in op.outputs]
        name = str(attributes.pop("name").item()) if "name" in attributes else ""
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
        if type_.dtype == "string":
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
        return np.fromiter(values, dtype, count).reshape(type_.shape)

    def file(self, name: str) -> WeightFile:
        relative = name.removeprefix("@model_path/")
        if Path(relative).is_absolute() or ".." in relative.split("/"):
            raise CannotExecute(f"the program points outside: {name!r}", where=self.model_file)
        if name not in self.files:
            self.files[name] = WeightFile(self.model_file.parent / relative)
        return self.files[name]


def histogram(program: Program) -> Mapping[str, int]:
    """How often each op type occurs in the main block and the blocks within."""
    from collections import Counter

    def walk(block: Block) -> Iterator[str]:
        for op in block.ops:
            yield op.type
            for inner in op.blocks:
                yield from walk(inner)

    return Counter(walk(program.main))
