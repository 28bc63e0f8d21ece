"""`model.mil`: an ML Program as the text that Core ML loads.

Xcode's compiler does not change the program: one line per operation, in the package's order, the
entries of every map sorted by name. Derived from pairs of packages and compiled models; the table
of what each shows stands in `tests/release/compile/test_mlmodelc_samples.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from convert.errors import CannotExecute
from release.compile.literals import literals, nested, quote

# Program.version is always 1; the dialect follows the specification (9 is macOS 15).
NEW_DIALECT = 9
OPSETS = {
    "CoreML5": "ios15",
    "CoreML6": "ios16",
    "CoreML7": "ios17",
    "CoreML8": "ios18",
    "CoreML9": "ios19",
}
XCODE = "Compile it with Xcode: `--engine xcode` on a Mac."
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class BlobReference(NamedTuple):
    """A constant in a weight file, as the program refers to it."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


def write_program(
    model: Any, write: Callable[[str], Any], build_info: Mapping[str, str]
) -> list[BlobReference]:
    """Write a model's program.

    Args:
        model: a `Model` message that holds an ML Program.
        write: takes the text, a line or so at a time.
        build_info: what the compiler says of itself; joins the program's own entries.

    Returns:
        the constants in weight files, sorted.

    Raises:
        CannotExecute: something whose text is not known.
    """
    description = model.description
    _refuse_states((*description.state, *(s for f in description.functions for s in f.state)))
    if not model.mlProgram.functions:
        raise CannotExecute("the program has no function")
    text = MilText(scalars=model.specificationVersion >= NEW_DIALECT)
    program = model.mlProgram
    write(f"program({'1.3' if text.scalars else '1.0'})\n")
    attributes = {k: text.value(v) for k, v in program.attributes.items() if k != "buildInfo"}
    attributes["buildInfo"] = text.build_info(program.attributes.get("buildInfo"), build_info)
    write(f"[{_assigned(attributes)}]\n{{\n")
    for name, function in sorted(program.functions.items()):
        text.function(name, function, described(model.description, name), write)
    write("}")
    return sorted(text.blobs)


def described(description: Any, function: str) -> Any:
    """The description of a function's inputs and outputs: its own, or the model's only one."""
    return next((f for f in description.functions if f.name == function), description)


def block_of(function: Any, name: str) -> Any:
    """The block that is run.

    Raises:
        CannotExecute: the function has none for its opset, or the opset is unknown.
    """
    if function.opset not in OPSETS:
        known = ", ".join(OPSETS)
        raise CannotExecute(f"function {name!r} has opset {function.opset!r}; known are {known}")
    if function.opset not in function.block_specializations:
        raise CannotExecute(f"function {name!r} has no block for its opset {function.opset}")
    return function.block_specializations[function.opset]


def _refuse_states(states: Iterable[Any]) -> None:
    for state in states:
        raise CannotExecute(f"has the state {state.name!r}, whose text is not known", hint=XCODE)


class MilText:
    """One dialect of the text.

    Args:
        scalars: write `int32(1)`, not `tensor<int32, []>(1)`.
    """

    def __init__(self, *, scalars: bool) -> None:
        from coremltools.proto import MIL_pb2

        self.scalars = scalars
        self.dtypes = {
            number: {"FLOAT8E4M3FN": "fp8e4m3fn", "FLOAT8E5M2": "fp8e5m2", "BFLOAT16": "bf16"}.get(
                name, name.lower().replace("float", "fp")
            )
            for name, number in MIL_pb2.DataType.items()
        }
        self._string, self._uint64 = self._scalar("string"), self._scalar("uint64")
        self._types: dict[bytes, str] = {}
        self.blobs: set[BlobReference] = set()

    def function(
        self, name: str, function: Any, description: Any, write: Callable[[str], Any]
    ) -> None:
        """Write a function; its inputs are sorted, its outputs are not."""
        block = block_of(function, name)
        if block.inputs or block.attributes:
            raise CannotExecute(
                f"the block of function {name!r} has inputs or attributes of its own, whose text "
                "is not known",
                hint=XCODE,
            )
        if not block.outputs:
            raise CannotExecute(f"function {name!r} has no outputs, whose text is not known")
        inputs = sorted(function.inputs, key=lambda i: i.name.encode())
        for state in (i for i in inputs if i.type.WhichOneof("type") == "stateType"):
            raise CannotExecute(
                f"has the state {state.name!r}, whose text is not known", hint=XCODE
            )
        attributes = {k: self.value(v) for k, v in function.attributes.items()}
        if flexible := self.flexible_shapes(description):
            attributes["FlexibleShapeInformation"] = flexible
        after = f" [{_assigned(attributes)}]" if attributes else ""
        typed = ", ".join(f"{self.type(i.type)} {_named(i.name)}" for i in inputs)
        write(f"    func {_named(name)}<{OPSETS[function.opset]}>({typed}){after} {{\n")
        for op in block.operations:
            write(f"            {self.operation(op)};\n")
        write(f"        }} -> ({', '.join(map(_named, block.outputs))});\n")

    def operation(self, op: Any) -> str:
        """`type name = op(parameter = value, …)[attribute = value, …]`, without the semicolon."""
        if op.blocks:
            raise CannotExecute(
                f"{op.type} {_name(op)!r} holds blocks of its own, whose text is not known",
                hint=XCODE,
            )
        if not op.outputs:
            raise CannotExecute(
                f"{op.type} {_name(op)!r} has no outputs, whose text is not known", hint=XCODE
            )
        try:
            outputs = ", ".join(f"{self.type(o.type)} {_named(o.name)}" for o in op.outputs)
            inputs = _assigned({k: self.argument(v.arguments) for k, v in op.inputs.items()})
            attributes = _assigned({k: self.value(v) for k, v in op.attributes.items()})
            type_ = _named(op.type)
        except CannotExecute as error:
            raise CannotExecute(
                f"{op.type} {_name(op)!r}: {error.problem}", hint=error.hint
            ) from None
        return f"{outputs} = {type_}({inputs})" + (f"[{attributes}]" if attributes else "")

    def argument(self, bindings: Any) -> str:
        """What a parameter is bound to: names or values, several of them in parentheses."""
        if not bindings:
            raise CannotExecute("a parameter that is bound to nothing")
        texts = [
            _named(b.name) if b.WhichOneof("binding") == "name" else self.value(b.value)
            for b in bindings
        ]
        return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"

    def type(self, type_: Any) -> str:
        """A `ValueType` as text."""
        key = type_.SerializeToString()
        if key not in self._types:
            self._types[key] = self._type(type_)
        return self._types[key]

    def _type(self, type_: Any) -> str:
        kind = type_.WhichOneof("type")
        if kind == "tensorType":
            tensor = type_.tensorType
            dtype = self._dtype(tensor.dataType)
            if tensor.rank < 0:
                raise CannotExecute("a tensor of unknown rank, whose text is not known", hint=XCODE)
            if tensor.rank != len(tensor.dimensions):
                found = f"{tensor.rank} with {len(tensor.dimensions)} dimensions"
                raise CannotExecute(f"a tensor of rank {found}")
            if not tensor.dimensions:
                return self._scalar(dtype)
            return f"tensor<{dtype}, [{', '.join(map(_dimension, tensor.dimensions))}]>"
        if kind == "listType":
            return f"list<{self.type(type_.listType.type)}, {_dimension(type_.listType.length)}>"
        if kind == "tupleType":
            return f"tuple<{', '.join(self.type(t) for t in type_.tupleType.types)}>"
        if kind == "dictionaryType":
            dictionary = type_.dictionaryType
            return f"dict<{self.type(dictionary.keyType)}, {self.type(dictionary.valueType)}>"
        if kind == "stateType":
            return f"state<{self.type(type_.stateType.wrappedType)}>"
        raise CannotExecute("a value without a type")

    def value(self, value: Any) -> str:
        """A `Value` with its type: `tensor<int32, [2]>([1, 2])`."""
        type_ = self.type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            blob, tensor = value.blobFileValue, value.type.tensorType
            if value.type.WhichOneof("type") != "tensorType":
                raise CannotExecute("a value in a weight file that is no tensor")
            dtype, shape = self._dtype(tensor.dataType), _shape(tensor)
            self.blobs.add(BlobReference(blob.fileName, blob.offset, dtype, shape))
            payload = (
                f"BLOBFILE(path = {self._string}({quote(blob.fileName)}), "
                f"offset = {self._uint64}({blob.offset}))"
            )
        else:
            payload = self.payload(value)
        return f"{type_}({payload})"

    def payload(self, value: Any) -> str:
        """A `Value` as it stands inside another, without its type."""
        kind = value.immediateValue.WhichOneof("value")
        type_ = value.type.WhichOneof("type")
        if type_ != f"{kind or 'tensor'}Type":
            raise CannotExecute(f"a {kind or 'missing'} value of a {type_ or 'missing type'}")
        immediate = getattr(value.immediateValue, kind or "tensor")
        if kind in ("list", "tuple"):
            items = ", ".join(map(self.payload, immediate.values))
            return f"[{items}]" if kind == "list" else f"({items})"
        if kind == "dictionary":
            pairs = [
                f"{{{self.payload(p.key)}, {self.payload(p.value)}}}" for p in immediate.values
            ]
            return f"{{{', '.join(pairs)}}}"
        tensor = value.type.tensorType
        shape, dtype = _shape(tensor), self._dtype(tensor.dataType)
        return nested(literals(immediate, dtype, math.prod(shape)), shape)

    def build_info(self, own: Any, compiler: Mapping[str, str]) -> str:
        """The program's own dictionary together with the compiler's entries, sorted."""
        pairs = own.immediateValue.dictionary.values if own is not None else ()
        texts = {self.payload(p.key): self.payload(p.value) for p in pairs}
        texts.update((quote(k), quote(v)) for k, v in compiler.items())
        items = ", ".join(f"{{{k}, {v}}}" for k, v in sorted(texts.items()))
        return f"dict<{self._string}, {self._string}>({{{items}}})"

    def flexible_shapes(self, description: Any) -> str:
        """The shapes that inputs may take, from the model's description; empty if all are fixed."""
        flexible = {}
        for feature in description.input:
            kind = feature.type.WhichOneof("Type")
            if kind == "imageType" and feature.type.imageType.WhichOneof("SizeFlexibility"):
                raise CannotExecute(
                    f"image input {feature.name!r} is of flexible size, whose text is not known",
                    hint=XCODE,
                )
            if kind == "multiArrayType" and feature.type.multiArrayType.WhichOneof(
                "ShapeFlexibility"
            ):
                flexible[feature.name] = feature.type.multiArrayType
        if not flexible:
            return ""
        names = sorted(flexible, key=str.encode)
        kinds = {array.WhichOneof("ShapeFlexibility") for array in flexible.values()}
        if len(kinds) > 1:
            raise CannotExecute(
                "inputs of enumerated shapes beside others of ranges, whose text is not known",
                hint=XCODE,
            )
        shapes = f"dict<{self._string}, tensor<int32, [?]>>"
        defaults = _dictionary({n: _list(flexible[n].shape) for n in names})
        if kinds == {"shapeRange"}:
            key, type_ = "RangeDims", f"dict<{self._string}, list<tensor<int32, [2]>, ?>>"
            ranges = {n: flexible[n].shapeRange.sizeRanges for n in names}
            choices = _dictionary(
                {n: _list(_list((r.lowerBound, r.upperBound)) for r in ranges[n]) for n in names}
            )
        else:
            key, type_ = "EnumeratedShapes", f"dict<{self._string}, {shapes}>"
            choices = _dictionary(dict(sorted(_enumerated(flexible, names))))
        types = f"tuple<{self._string}, {shapes}>, tuple<{self._string}, {type_}>"
        return f'tuple<{types}>((("DefaultShapes", {defaults}), ("{key}", {choices})))'

    def _dtype(self, number: int) -> str:
        dtype = self.dtypes.get(number, "unused_type")
        if dtype == "unused_type":
            raise CannotExecute(f"a tensor of data type {number}, which is not known")
        return dtype

    def _scalar(self, dtype: str) -> str:
        return dtype if self.scalars else f"tensor<{dtype}, []>"


def _enumerated(flexible: Mapping[str, Any], names: list[str]) -> Iterable[tuple[str, str]]:
    """One entry for each combination of shapes, under an identifier of eight hex digits.

    Xcode's identifiers follow from the shapes in a way that is not known; these do, too.
    """
    shapes = [flexible[n].enumeratedShapes.shapes for n in names]
    for combination in zip(*shapes, strict=False):
        entry = _dictionary({n: _list(s.shape) for n, s in zip(names, combination, strict=True)})
        yield hashlib.sha256(entry.encode()).hexdigest()[:8], entry


def _assigned(texts: Mapping[str, str]) -> str:
    return ", ".join([f"{_named(key)} = {texts[key]}" for key in sorted(texts)])


def _dictionary(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{{{quote(key)}, {text}}}" for key, text in texts.items()) + "}"


def _list(items: Iterable[Any]) -> str:
    return f"[{', '.join(map(str, items))}]"


def _dimension(dimension: Any) -> str:
    kind = dimension.WhichOneof("dimension")
    if kind == "constant":
        return str(dimension.constant.size)
    if kind is None:
        raise CannotExecute("a dimension without a size")
    if dimension.unknown.variadic:
        raise CannotExecute("a variadic dimension, whose text is not known", hint=XCODE)
    return "?"


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape of a constant."""
    if tensor.rank < 0 or any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
        raise CannotExecute("a constant of unknown shape")
    return tuple(d.constant.size for d in tensor.dimensions)


def _named(name: str) -> str:
    """A name that can stand in the text as it is."""
    if not NAME.fullmatch(name):
        raise CannotExecute(f"the name {name!r}, which is not letters, digits and underscores")
    return name


def _name(op: Any) -> str:
    """What an error calls an op: its first output, or the name that it was given."""
    if op.outputs or "name" not in op.attributes:
        return op.outputs[0].name if op.outputs else ""
    return "".join(op.attributes["name"].immediateValue.tensor.strings.values)
