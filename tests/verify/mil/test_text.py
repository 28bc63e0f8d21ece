"""The parser of `model.mil`: what it reads, what it refuses and where, and that it is the writer's
inverse on values of every kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import MIL_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.errors import CannotExecute
from release.compile.mil_text import MilText
from verify.mil.text import parse_program

PROGRAM = """program(1.3)
[buildInfo = dict<string, string>({{"coremlc-version", "3"}, {"a", "b"}})]
{
    func main<ios18>(tensor<fp16, [1, ?]> b, state<tensor<fp16, [2]>> a) [FlexibleShapeInformation = \
tuple<tuple<string, dict<string, tensor<int32, [?]>>>, tuple<string, dict<string, \
list<tensor<int32, [2]>, ?>>>>((("DefaultShapes", {{"b", [1, 4]}}), \
("RangeDims", {{"b", [[1, 1], [1, 9]]}})))] {
            int32 axis = const()[name = string("op_1"), val = int32(-1)];
            tensor<fp16, [1, ?]> c, fp32 d = some_op(axis = axis, flag = bool(true), values = (b, b));
            tensor<fp16, [4]> w = constexpr_x(data = tensor<uint4, [4]>(\
BLOBFILE(path = string("@model_path/weights/w.bin"), offset = uint64(128))), scale = tensor<fp16, \
[2, 1]>([[0x1.8p-3], [-inf]]));
            tensor<string, [2]> s = const()[val = tensor<string, [2]>(["a, (b)", "c \\"d\\" \\\\"])];
        } -> (c, d);
}"""  # noqa: E501  Xcode's lines are that long


def parse(text: str) -> Any:
    (function,) = parse_program(text, Path("x.mlmodelc"))
    return function


def test_a_program_of_the_new_dialect() -> None:
    function = parse(PROGRAM)
    assert (function.name, function.opset) == ("main", "ios18")
    block = function.main
    assert {n: str(t) for n, t in block.inputs.items()} == {"b": "fp16[1, -1]", "a": "stateType[]"}
    assert block.outputs == ["c", "d"]
    axis, some, decoder, strings = block.ops
    assert (axis.type, axis.name, axis.outputs[0][0]) == ("const", "op_1", "axis")
    assert axis.attributes["val"].item() == -1
    assert axis.attributes.keys() == {"val"}  # the name is the op's
    assert (some.type, some.name) == ("some_op", "c")
    assert [(n, str(t)) for n, t in some.outputs] == [("c", "fp16[1, -1]"), ("d", "fp32[]")]
    assert some.inputs["axis"] == ["axis"]
    assert some.inputs["values"] == ["b", "b"]
    assert some.inputs["flag"][0].item() is True
    (data,) = decoder.inputs["data"]
    assert (str(data.type), data.offset) == ("uint4[4]", 128)
    assert data.file.path == Path("x.mlmodelc/weights/w.bin")
    assert decoder.inputs["scale"][0].item() == [[0.1875], [-np.inf]]
    assert strings.attributes["val"].item() == ["a, (b)", 'c "d" \\']


def test_line_breaks_and_spaces_do_not_matter() -> None:
    one = parse(PROGRAM)
    text = re.sub(r"([=,;{}()\[\]])(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", r" \1 ", PROGRAM)
    other = parse(re.sub(r" (?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", "\n ", text.replace("\\\n", "")))
    assert str(one.main.inputs) == str(other.main.inputs)
    assert [str(op.outputs) for op in one.main.ops] == [str(op.outputs) for op in other.main.ops]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("} -> (c, d);", "} (c, d);", r"line 9, at '\(c, d\);': '->' expected"),
        ("int32(-1)", "int32(-1", "line 5.*'\\)' expected"),
        ("int32(-1)", "int32(x)", "line 5.*cannot be read"),
        ("int32 axis", "int32 = axis", "line 5.*a name expected"),
        ("bool(true)", "bool(1)", "line 6.*true or false expected"),
        ('string("op_1")', "string(op_1)", "line 5.*a string expected"),
        ("[[0x1.8p-3], [-inf]]", "[[0x1.8p-3, 0x1p+0], [-inf]]", "line 7.*']' expected"),
        ("[[0x1.8p-3], [-inf]]", "[0x1.8p-3, -inf]", "line 7.*'\\[' expected"),
        ("[[0x1.8p-3], [-inf]]", "[[0x1.8p-3]]", "line 7.*',' expected"),
        ("@model_path/weights/w.bin", "../w.bin", "line 7.*the program points outside"),
        (", offset = uint64(128)", "", "line 7.*a weight file's path and offset expected"),
        ("values = (b, b))", "values = (b, b)) {\n}", "line 6.*blocks within an operation"),
        ("program(1.3)", "version https://git-lfs", "line 1, at 'version .*: 'program' expected"),
        ("(c, d);\n}", "(c, d);\n} more", "line 10, at 'more': nothing expected"),
        ("int32(-1)", "int32(2147483648)", "line 5.*cannot be read"),
        ("        } -> (c, d);\n}", "", "line 8.*cannot be read|a name expected"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, problem: str) -> None:
    assert PROGRAM.count(old) == 1
    with pytest.raises(CannotExecute, match=problem) as error:
        parse(PROGRAM.replace(old, new))
    assert error.value.where == "x.mlmodelc/model.mil"


# ---- the writer's inverse ----

FLOATS = {"FLOAT16": ("<f2", 16), "FLOAT32": ("<f4", 32), "FLOAT64": ("<f8", 64)}
INTEGERS = {f"INT{n}": (f"<i{n // 8}", n) for n in (8, 16, 32, 64)}
INTEGERS |= {f"UINT{n}": (f"<u{n // 8}", n) for n in (8, 16, 32, 64)}
SUB_BYTE = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


def message_of(dtype: str, shape: tuple[int, ...]) -> Any:
    message = MIL_pb2.Value()
    message.type.tensorType.dataType = MIL_pb2.DataType.Value(dtype)
    message.type.tensorType.rank = len(shape)
    for size in shape:
        message.type.tensorType.dimensions.add().constant.size = size
    return message


def read_back(message: Any, scalars: bool) -> np.ndarray:
    text = MilText(scalars=scalars).value(message)
    function = parse(f"program(1.0)\n{{ func main<ios17>() {{ x y = op(z = {text}); }} -> (y);\n}}")
    (constant,) = function.main.ops[0].inputs["z"]
    assert constant.type.shape == tuple(d.constant.size for d in message.type.tensorType.dimensions)
    return constant.array()  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=150)
@given(st.data(), SHAPES, st.booleans())
def test_floats_and_integers_come_back_to_the_bit(
    data: st.DataObject, shape: tuple[int, ...], scalars: bool
) -> None:
    dtype = data.draw(st.sampled_from([*FLOATS, *INTEGERS]))
    numpy_dtype, bits = {**FLOATS, **INTEGERS}[dtype]
    count = int(np.prod(shape, dtype=np.int64))
    # Any bits at all: denormals, infinities, both zeros, not-a-number.
    pattern = st.integers(0, 2**bits - 1) | st.sampled_from([0, 2 ** (bits - 1)])
    patterns = data.draw(st.lists(pattern, min_size=count, max_size=count))
    array = np.array(patterns, f"<u{bits // 8}").view(numpy_dtype).reshape(shape)
    message = message_of(dtype, shape)
    tensor = message.immediateValue.tensor
    if dtype == "FLOAT32":
        tensor.floats.values.extend(array.reshape(-1).tolist())
    elif dtype == "FLOAT64":
        tensor.doubles.values.extend(array.reshape(-1).tolist())
    elif dtype == "INT32":
        tensor.ints.values.extend(array.reshape(-1).tolist())
    elif dtype == "INT64":
        tensor.longInts.values.extend(array.reshape(-1).tolist())
    else:
        tensor.bytes.values = array.tobytes()
    found = read_back(message, scalars)
    assert found.dtype == array.dtype
    assert found.shape == shape
    nan = np.isnan(array) if array.dtype.kind == "f" else np.zeros(shape, bool)
    assert np.array_equal(np.isnan(found) if array.dtype.kind == "f" else nan, nan)
    assert found[~nan].tobytes() == array[~nan].tobytes()


@settings(deadline=None)
@given(st.data(), SHAPES, st.sampled_from(sorted(SUB_BYTE)))
def test_integers_of_less_than_a_byte_come_back(
    data: st.DataObject, shape: tuple[int, ...], dtype: str
) -> None:
    bits = SUB_BYTE[dtype]
    count = int(np.prod(shape, dtype=np.int64))
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    stream = "".join(f"{v:0{bits}b}"[::-1] for v in values)
    stream += "0" * (-len(stream) % 8)
    message = message_of(dtype, shape)
    message.immediateValue.tensor.bytes.values = bytes(
        int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)
    )
    signed = [v - 2**bits if dtype == "INT4" and v >= 2 ** (bits - 1) else v for v in values]
    found = read_back(message, True)
    assert found.dtype == (np.int8 if dtype == "INT4" else np.uint8)
    assert found.tolist() == np.array(signed, np.int16).reshape(shape).tolist()


# Any character but the control characters that Xcode's spelling is not known of.
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\r\t"))


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5), st.booleans())
def test_strings_come_back(texts: list[str], scalars: bool) -> None:
    message = message_of("STRING", (len(texts),))
    message.immediateValue.tensor.strings.values.extend(texts)
    # numpy drops zeros at the end of a string, as the reader of packages does.
    assert read_back(message, scalars).tolist() == [t.rstrip("\0") for t in texts]


@settings(deadline=None)
@given(TEXTS, st.lists(st.booleans(), max_size=4))
def test_scalar_strings_and_booleans_come_back(text: str, flags: list[bool]) -> None:
    message = message_of("STRING", ())
    message.immediateValue.tensor.strings.values.append(text)
    assert read_back(message, False).item() == text.rstrip("\0")
    message = message_of("BOOL", (len(flags),))
    message.immediateValue.tensor.bools.values.extend(flags)
    assert read_back(message, True).tolist() == flags
