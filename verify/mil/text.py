"""The text of an ML Program (`model.mil` in a `.mlmodelc`), parsed.

The whole text becomes a list of tokens, with a tensor type as one token; a recursive descent over
the list gives ops and constants. Nothing is shared with what writes such texts here
(`release/compile/mil_text.py`), so that each checks the other.

    program(1.0)
    [buildInfo = dict<…>({{"key", "value"}, …})]
    {
        func main<ios17>(tensor<fp16, [2, 4]> x, …) [attribute = value, …] {
            tensor<fp16, [2, 4]> y = relu(x = x)[name = tensor<string, []>("y")];
        } -> (y);
    }
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from convert.errors import CannotExecute
from verify.mil.blob import NUMPY_DTYPES, SUB_BYTE_BITS, WeightFile
from verify.mil.program import Block, Constant, Op, TensorType

TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"'  # a string
    r"|tensor<\s*\w+\s*,\s*\[[\d\s,?]*\]\s*>"
    r"|-?0x[\da-f.]+p[+-]?\d+|-?\.?\d[\w.]*(?:(?<=e)[+-]\d+)?|-inf|-nan"  # a number
    r"|[A-Za-z_][\w@.]*|->|\S",
    re.DOTALL,
)
TENSOR = re.compile(r"tensor<\s*(\w+)\s*,\s*\[([\d\s,?]*)\]\s*>")
COMPOSITES = {"list": "listType", "tuple": "tupleType", "dict": "dictionaryType"}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
SHOWN = 40  # characters of the text where it goes wrong

T = TypeVar("T")


@dataclass(frozen=True)
class Composite:
    """A list, tuple, dictionary or state, and the types in it."""

    kind: str
    parts: tuple[TensorType | Composite, ...]

    @property
    def plain(self) -> TensorType:
        """The name that `verify.mil.package` gives the type."""
        return TensorType(COMPOSITES.get(self.kind, f"{self.kind}Type"), ())


@dataclass(frozen=True)
class Function:
    """A function of the text; `main` has its inputs and outputs."""

    name: str
    opset: str  # ios17, for example
    main: Block
    attributes: tuple[str, ...] = ()  # their names


def parse_program(text: str, folder: Path) -> list[Function]:
    """The functions of a program.

    Args:
        folder: where its weight files are.

    Raises:
        CannotExecute: not such a text, with the line where it goes wrong.
    """
    parser = _Parser(text, folder)
    try:
        return parser.program()
    except _Unexpected as error:
        raise parser.located(str(error)) from None
    except (IndexError, ValueError, OverflowError) as error:
        raise parser.located(f"cannot be read: {error}") from None


class _Unexpected(Exception):
    """The text goes on otherwise than it may."""


class _Parser:
    def __init__(self, text: str, folder: Path) -> None:
        self.text, self.folder = text, folder
        self.tokens: list[str] = TOKEN.findall(text)
        self.tokens.append("")  # the end
        self.at = 0
        self.files: dict[str, WeightFile] = {}
        self._types: dict[str, TensorType] = {}

    def located(self, problem: str) -> CannotExecute:
        """The error at the current token."""
        found = None
        for index, found in enumerate(TOKEN.finditer(self.text)):  # noqa: B007
            if index == self.at:
                break
        start = found.start() if found else 0
        line = self.text.count("\n", 0, start) + 1
        shown = self.text[start : start + SHOWN].split("\n")[0]
        return CannotExecute(
            f"line {line}, at {shown!r}: {problem}", where=self.folder / "model.mil"
        )

    # ---- tokens ----

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, token: str) -> None:
        if self.tokens[self.at] != token:
            raise _Unexpected(f"{token!r} expected")
        self.at += 1

    def accept(self, token: str) -> bool:
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def name(self) -> str:
        token = self.tokens[self.at]
        if not (token[:1].isalpha() or token[:1] == "_"):
            raise _Unexpected("a name expected")
        self.at += 1
        return token

    def many(self, item: Callable[[], T], close: str) -> list[T]:
        """Items with commas between them up to `close`, which is consumed."""
        items: list[T] = []
        if self.accept(close):
            return items
        while True:
            items.append(item())
            if self.accept(close):
                return items
            self.expect(",")

    # ---- the grammar ----

    def program(self) -> list[Function]:
        self.expect("program")
        self.expect("(")
        self.next()
        self.expect(")")
        self.attributes()
        self.expect("{")
        functions = []
        while not self.accept("}"):
            functions.append(self.function())
        if self.tokens[self.at]:
            raise _Unexpected("nothing expected after the program")
        return functions

    def function(self) -> Function:
        self.expect("func")
        name = self.name()
        self.expect("<")
        opset = self.name()
        self.expect(">")
        self.expect("(")
        given = self.many(self.output, ")")
        inputs = dict(given)
        if len(inputs) != len(given):
            raise _Unexpected("a function that takes one name twice")
        attributes = self.attributes()
        self.expect("{")
        ops = []
        while not self.accept("}"):
            ops.append(self.op())
        self.expect("->")
        self.expect("(")
        outputs = self.many(self.name, ")")
        self.expect(";")
        return Function(name, opset, Block(inputs, ops, outputs), tuple(sorted(attributes)))

    def op(self) -> Op:
        outputs = [self.output()]
        while self.accept(","):
            outputs.append(self.output())
        self.expect("=")
        type_ = self.name()
        self.expect("(")
        inputs = dict(self.many(self.argument, ")"))
        attributes = self.attributes()
        if self.tokens[self.at] == "{":
            raise _Unexpected("blocks within an operation are not known")
        self.expect(";")
        if type_ == "const" and "val" not in attributes:
            raise _Unexpected("a `const` without a value")
        given = attributes.pop("name", None)
        if given is not None and given.type != TensorType("string", ()):
            raise _Unexpected(f"an operation whose name is of type {given.type}")
        name = "" if given is None else str(given.item())
        return Op(type_, name or outputs[0][0], inputs, attributes, outputs)

    def output(self) -> tuple[str, TensorType]:
        type_ = self.type()
        return self.name(), type_ if isinstance(type_, TensorType) else type_.plain

    def argument(self) -> tuple[str, list[str | Constant]]:
        key = self.name()
        self.expect("=")
        if self.accept("("):
            return key, self.many(self.binding, ")")
        return key, [self.binding()]

    def binding(self) -> str | Constant:
        """A name, or a value: which begins with a type, and so goes on with one of `<(`."""
        if self.tokens[self.at].startswith("tensor<") or self.tokens[self.at + 1] in ("(", "<"):
            return self.value()
        return self.name()

    def attributes(self) -> dict[str, Constant]:
        return dict(self.many(self.attribute, "]")) if self.accept("[") else {}

    def attribute(self) -> tuple[str, Constant]:
        key = self.name()
        self.expect("=")
        return key, self.value()

    def type(self) -> TensorType | Composite:
        token = self.tokens[self.at]
        known = self._types.get(token)
        if known is not None:
            self.at += 1
            return known
        if token.startswith("tensor<"):
            self.at += 1
            dtype, dims = TENSOR.fullmatch(token).groups()  # type: ignore[union-attr]
            shape = tuple(-1 if d.strip() == "?" else int(d) for d in dims.split(",") if d.strip())
            self._types[token] = TensorType(dtype, shape)
            return self._types[token]
        kind = self.name()
        if not self.accept("<"):
            return TensorType(kind, ())
        parts: list[TensorType | Composite] = [self.type()]
        while self.accept(","):
            if self.tokens[self.at] == "?" or self.tokens[self.at].isdigit():
                self.at += 1  # a list's length
            else:
                parts.append(self.type())
        self.expect(">")
        return Composite(kind, tuple(parts))

    def value(self) -> Constant:
        type_ = self.type()
        self.expect("(")
        if isinstance(type_, TensorType) and self.accept("BLOBFILE"):
            self.expect("(")
            place = dict(self.many(self.attribute, ")"))
            self.expect(")")
            if place.keys() != {"path", "offset"}:
                raise _Unexpected("a weight file's path and offset expected")
            return Constant(
                type_, file=self.file(str(place["path"].item())), offset=int(place["offset"].item())
            )
        payload = self.payload(type_)
        self.expect(")")
        return Constant(type_ if isinstance(type_, TensorType) else type_.plain, payload)

    def payload(self, type_: TensorType | Composite) -> np.ndarray:
        """What stands in the parentheses of a value."""
        if isinstance(type_, TensorType):
            tokens: list[str] = []
            self.elements(type_.shape, tokens)
            return _array(tokens, type_)
        if type_.kind == "list":
            self.expect("[")
            return np.array(self.many(lambda: self.payload(type_.parts[0]), "]"))
        items: list[Any]
        if type_.kind == "dict":
            self.expect("{")
            items = self.many(lambda: self.sequence(type_.parts, "{", "}"), "}")
        else:
            items = self.sequence(type_.parts, "(", ")")
        # Only a compiler's remarks are of these types; no op takes them.
        return np.array(items, dtype=object)

    def sequence(
        self, types: tuple[TensorType | Composite, ...], start: str, end: str
    ) -> list[Any]:
        self.expect(start)
        items = []
        for index, type_ in enumerate(types):
            if index:
                self.expect(",")
            items.append(self.payload(type_).tolist())
        self.expect(end)
        return items

    def elements(self, shape: tuple[int, ...], found: list[str]) -> None:
        """Collect the elements of nested brackets, which must have the declared shape."""
        if not shape:
            found.append(self.next())
            return
        self.expect("[")
        count = shape[0]
        if count < 0:  # a list of any length, in a compiler's remark
            found.extend(self.many(self.next, "]"))
            return
        if len(shape) == 1 and count:
            end = self.at + 2 * count - 1
            row = self.tokens[self.at : end]
            if any(token != "," for token in row[1::2]):
                raise _Unexpected(f"{count} elements expected")
            found.extend(row[::2])
            self.at = end
        else:
            for index in range(count):
                if index:
                    self.expect(",")
                self.elements(shape[1:], found)
        self.expect("]")

    def file(self, name: str) -> WeightFile:
        relative = name.removeprefix("@model_path/")
        if Path(relative).is_absolute() or ".." in relative.split("/"):
            raise _Unexpected(f"the program points outside: {name!r}")
        if name not in self.files:
            self.files[name] = WeightFile(self.folder / relative)
        return self.files[name]


def _array(tokens: list[str], type_: TensorType) -> np.ndarray:
    """Elements of a constant as `Constant.array` gives them."""
    dtype = type_.dtype
    values: list[Any]
    if dtype == "string":
        if not all(len(t) > 1 and t[0] == t[-1] == '"' for t in tokens):
            raise _Unexpected("a string expected")
        array = np.array([_unquoted(t) for t in tokens], dtype=np.str_)
    elif dtype == "bool":
        if not set(tokens) <= {"true", "false"}:
            raise _Unexpected("true or false expected")
        array = np.array([t == "true" for t in tokens])
    elif dtype in ("fp16", "fp32", "fp64"):
        values = [float.fromhex(t) if "x" in t else float(t) for t in tokens]
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(NUMPY_DTYPES[dtype])
    elif dtype in NUMPY_DTYPES:
        array = np.array([int(t) for t in tokens], NUMPY_DTYPES[dtype])
    elif dtype in SUB_BYTE_BITS:
        array = np.array([int(t) for t in tokens], np.int8 if dtype == "int4" else np.uint8)
    else:
        raise _Unexpected(f"a constant of type {type_} cannot be read")
    return array if -1 in type_.shape else array.reshape(type_.shape)


def _unquoted(token: str) -> str:
    text = token[1:-1]
    if "\\" not in text:
        return text
    return re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), text, flags=re.DOTALL)
