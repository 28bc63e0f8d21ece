"""The text of an ML Program: each rule on a program of its own.

What is marked with a pair in `test_mlmodelc_samples.py` is known from Xcode's own output;
the new dialect, flexible shapes and several functions from published output of Xcode 26 and 27.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf import text_format

from convert.errors import CannotExecute
from release.compile.literals import hex_float, quote
from release.compile.mil_text import MilText, write_program

INFO = {"coremlc-component-MIL": "1.2", "coremlc-version": "3"}


def model(text: str, version: int = 8) -> Any:
    """A model from protobuf text."""
    return text_format.Parse(f"specificationVersion: {version} {text}", Model_pb2.Model())


def tensor(dtype: str, *shape: int) -> str:
    """A tensor's type as protobuf text; -1 is an open dimension."""
    dims = "".join(
        "dimensions { unknown {} } " if n < 0 else f"dimensions {{ constant {{ size: {n} }} }} "
        for n in shape
    )
    return f"tensorType {{ dataType: {dtype} rank: {len(shape)} {dims}}}"


def written(message: Any) -> str:
    parts: list[str] = []
    write_program(message, parts.append, INFO)
    return "".join(parts)


def relu(function: str = "main", opset: str = "CoreML7", *shape: int) -> str:
    """A function of one relu."""
    type_ = tensor("FLOAT32", *(shape or (4,)))
    return f"""
        functions {{ key: "{function}" value {{
            opset: "{opset}"
            inputs {{ name: "x" type {{ {type_} }} }}
            block_specializations {{ key: "{opset}" value {{
                outputs: "y"
                operations {{
                    type: "relu"
                    inputs {{ key: "x" value {{ arguments {{ name: "x" }} }} }}
                    outputs {{ name: "y" type {{ {type_} }} }}
                }}
            }} }}
        }} }}"""


def feature(flexibility: str = "", shape: str = "shape: 4") -> str:
    return f'name: "x" type {{ multiArrayType {{ {shape} dataType: FLOAT32 {flexibility} }} }}'


def test_the_frame_in_both_dialects() -> None:
    program = f"mlProgram {{ version: 1 {relu()} }}"
    assert written(model(program, 8)) == (
        "program(1.0)\n"
        "[buildInfo = dict<tensor<string, []>, tensor<string, []>>"
        '({{"coremlc-component-MIL", "1.2"}, {"coremlc-version", "3"}})]\n'
        "{\n"
        "    func main<ios17>(tensor<fp32, [4]> x) {\n"
        "            tensor<fp32, [4]> y = relu(x = x);\n"
        "        } -> (y);\n"
        "}"
    )
    new = written(model(program, 9))
    assert new.startswith('program(1.3)\n[buildInfo = dict<string, string>({{"coremlc-component')
    assert "func main<ios17>(tensor<fp32, [4]> x) {\n" in new  # the opset stays the function's own


def test_functions_and_inputs_are_sorted() -> None:
    text = written(model(f"mlProgram {{ {relu('second')} {relu('first', 'CoreML8')} }}", 9))
    assert re.findall(r"func (\w+)<(\w+)>", text) == [("first", "ios18"), ("second", "ios17")]
    message = model(f"mlProgram {{ {relu()} }}")
    function = message.mlProgram.functions["main"]
    for name in ("b", "B", "a_2", "a"):
        function.inputs.add(name=name).type.CopyFrom(function.inputs[0].type)
    (line,) = [line for line in written(message).split("\n") if "func" in line]
    assert re.findall(r"> (\w+)", line) == ["B", "a", "a_2", "b", "x"]


def test_operations_keep_their_order_and_their_parameters_are_sorted() -> None:
    message = model(f"mlProgram {{ {relu()} }}")
    block = message.mlProgram.functions["main"].block_specializations["CoreML7"]
    op = block.operations.add(type="concat")
    for name in ("y", "x"):
        op.inputs["values"].arguments.add(name=name)
    axis = op.inputs["axis"].arguments.add().value
    text_format.Parse(
        f"type {{ {tensor('INT32')} }} immediateValue {{ tensor {{ ints {{ values: -1 }} }} }}",
        axis,
    )
    text_format.Parse(
        f"type {{ {tensor('STRING')} }}"
        ' immediateValue { tensor { strings { values: "other" } } }',
        op.attributes["name"],
    )
    for name in ("a", "b"):
        text_format.Parse(f'name: "{name}" type {{ {tensor("FLOAT32", 8)} }}', op.outputs.add())
    assert written(message).split("\n")[5] == (
        "            tensor<fp32, [8]> a, tensor<fp32, [8]> b = concat("
        "axis = tensor<int32, []>(-1), values = (y, x))"
        '[name = tensor<string, []>("other")];'
    )


def test_build_info_of_the_program_joins_the_compilers() -> None:
    string = tensor("STRING")

    def value(text: str) -> str:
        return (
            f"{{ type {{ {string} }} immediateValue {{ tensor {{"
            f' strings {{ values: "{text}" }} }} }} }}'
        )

    info = "".join(
        f"values {{ key {value(k)} value {value(v)} }}"
        for k, v in (("coremltools-version", "9.0"), ("a", "b"), ("coremlc-version", "old"))
    )
    text = written(
        model(
            f"""mlProgram {{ {relu()} attributes {{ key: "buildInfo" value {{
            type {{ dictionaryType {{ keyType {{ {string} }} valueType {{ {string} }} }} }}
            immediateValue {{ dictionary {{ {info} }} }} }} }} }}""",
            9,
        )
    )
    assert text.split("\n")[1] == (
        '[buildInfo = dict<string, string>({{"a", "b"}, {"coremlc-component-MIL", "1.2"}, '
        '{"coremlc-version", "3"}, {"coremltools-version", "9.0"}})]'
    )


S = "tensor<string, []>"
SHAPES = f"tuple<{S}, dict<{S}, tensor<int32, [?]>>>"
DEFAULT = '("DefaultShapes", {{"x", [1, 4]}})'
# Xcode names each enumerated shape by eight hexadecimal digits of its own making.
ENTRY = r'\{"[0-9a-f]{8}", \{\{"x", \[1, [48]\]\}\}\}'


@pytest.mark.parametrize(
    ("flexibility", "expected"),
    [
        (
            "shapeRange { sizeRanges { lowerBound: 1 upperBound: 1 }"
            " sizeRanges { lowerBound: 1 upperBound: 2048 } }",
            re.escape(
                f"tuple<{SHAPES}, tuple<{S}, dict<{S}, list<tensor<int32, [2]>, ?>>>>"
                f'(({DEFAULT}, ("RangeDims", {{{{"x", [[1, 1], [1, 2048]]}}}})))'
            ),
        ),
        (
            "enumeratedShapes { shapes { shape: 1 shape: 4 } shapes { shape: 1 shape: 8 } }",
            re.escape(
                f"tuple<{SHAPES}, tuple<{S}, dict<{S}, dict<{S}, tensor<int32, [?]>>>>>"
                f'(({DEFAULT}, ("EnumeratedShapes", {{'
            )
            + f"{ENTRY}, {ENTRY}"
            + re.escape("})))"),
        ),
    ],
    ids=["ranges", "enumerated"],
)
@pytest.mark.parametrize("level", ["{}", 'functions {{ name: "main" {} }}'])
def test_flexible_shapes_are_told_beside_the_function(
    flexibility: str, expected: str, level: str
) -> None:
    description = level.format(f"input {{ {feature(flexibility, 'shape: 1 shape: 4')} }}")
    message = model(
        f"description {{ {description} }} mlProgram {{ {relu('main', 'CoreML7', 1, -1)} }}"
    )
    (line,) = re.findall(r"func .*", written(message))
    start = re.escape("func main<ios17>(tensor<fp32, [1, ?]> x) [FlexibleShapeInformation = ")
    assert re.fullmatch(start + expected + re.escape("] {"), line)
    keys = re.findall(r'"([0-9a-f]{8})"', line)
    assert keys == sorted(set(keys))


def test_fixed_inputs_beside_flexible_ones_are_left_out() -> None:
    ranges = "shapeRange { sizeRanges { lowerBound: 2 upperBound: -1 } }"
    message = model(
        f"description {{ input {{ {feature()} }} input {{ {feature(ranges).replace('x', 'b', 1)} }}"
        f" input {{ {feature(ranges).replace('x', 'a', 1)} }} }} mlProgram {{ {relu()} }}",
        9,
    )
    assert (
        '(("DefaultShapes", {{"a", [4]}, {"b", [4]}}), '
        '("RangeDims", {{"a", [[2, -1]]}, {"b", [[2, -1]]}})))'
    ) in written(message)


# ---- types and values ----


@pytest.fixture(params=[8, 9], ids=["old", "new"])
def dialect(request: pytest.FixtureRequest) -> tuple[MilText, Callable[[str], str]]:
    """The text of a dialect, and what it calls a scalar type."""
    new = request.param == 9
    return MilText(scalars=new), lambda dtype: dtype if new else f"tensor<{dtype}, []>"


def value(type_: str, immediate: str) -> Any:
    return text_format.Parse(
        f"type {{ {type_} }} immediateValue {{ {immediate} }}", MIL_pb2.Value()
    )


def packed(dtype: str, shape: tuple[int, ...], data: bytes) -> Any:
    message = text_format.Parse(f"type {{ {tensor(dtype, *shape)} }}", MIL_pb2.Value())
    message.immediateValue.tensor.bytes.values = data
    return message


def test_types(dialect: tuple[MilText, Callable[[str], str]]) -> None:
    text, scalar = dialect
    of = {
        tensor("FLOAT16", 1, -1): "tensor<fp16, [1, ?]>",
        tensor("BFLOAT16", 3): "tensor<bf16, [3]>",
        tensor("UINT4", 2, 2): "tensor<uint4, [2, 2]>",
        tensor("INT32"): scalar("int32"),
        f"listType {{ type {{ {tensor('STRING')} }} length {{ constant {{ size: 2 }} }} }}": (
            f"list<{scalar('string')}, 2>"
        ),
        f"listType {{ type {{ {tensor('INT32', 2)} }} length {{ unknown {{}} }} }}": (
            "list<tensor<int32, [2]>, ?>"
        ),
        f"stateType {{ wrappedType {{ {tensor('FLOAT16', 1, 8)} }} }}": (
            "state<tensor<fp16, [1, 8]>>"
        ),
        f"tupleType {{ types {{ {tensor('BOOL')} }} types {{ {tensor('FLOAT32', 1)} }} }}": (
            f"tuple<{scalar('bool')}, tensor<fp32, [1]>>"
        ),
    }
    for message, expected in of.items():
        assert text.type(text_format.Parse(message, MIL_pb2.ValueType())) == expected


HALF = np.array([0.5, -0.0, 2**-24, 65504, -np.inf, np.nan], "<f2")
VALUES: list[tuple[Any, str]] = [
    (packed("FLOAT16", (6,), HALF.tobytes()), "[0x1p-1, -0x0p+0, 0x1p-24, 0x1.ffcp+15, -inf, nan]"),
    (packed("INT8", (2, 1), b"\x80\x7f"), "[[-128], [127]]"),
    (packed("UINT8", (1, 2), b"\x00\xff"), "[[0, 255]]"),
    (packed("UINT16", (1,), b"\xff\xff"), "[65535]"),
    (packed("INT16", (1,), b"\xff\xff"), "[-1]"),
    (packed("UINT64", (1,), b"\xff" * 8), f"[{2**64 - 1}]"),
    (packed("UINT4", (3,), b"\x21\x0f"), "[1, 2, 15]"),
    (packed("INT4", (3,), b"\x98\x07"), "[-8, -7, 7]"),
    (packed("UINT3", (3,), b"\xd1\x01"), "[1, 2, 7]"),  # 001 010 111, from the lowest bit
    (packed("UINT1", (2, 2), b"\x06"), "[[0, 1], [1, 0]]"),
    (packed("BFLOAT16", (1,), b"\xc0\x3f"), "[0x1.8p+0]"),
    (packed("FLOAT16", (0,), b""), "[]"),
    (packed("FLOAT16", (2, 0), b""), "[[], []]"),
    (value(tensor("FLOAT32", 1), "tensor { floats { values: 0.1 } }"), "[0x1.99999ap-4]"),
    (value(tensor("FLOAT64", 1), "tensor { doubles { values: 0.1 } }"), "[0x1.999999999999ap-4]"),
    (value(tensor("INT64", 1), f"tensor {{ longInts {{ values: {-(2**63)} }} }}"), f"[{-(2**63)}]"),
    (value(tensor("INT32", 1, 1, 1, 1), "tensor { ints { values: 7 } }"), "[[[[7]]]]"),
    (value(tensor("BOOL", 2), "tensor { bools { values: true values: false } }"), "[true, false]"),
    (value(tensor("STRING", 2), 'tensor { strings { values: "a" values: "é" } }'), '["a", "é"]'),
]


@pytest.mark.parametrize(("message", "expected"), VALUES, ids=[e for _, e in VALUES])
def test_arrays(message: Any, expected: str) -> None:
    text = MilText(scalars=True)
    assert text.value(message) == f"{text.type(message.type)}({expected})"


def test_scalars(dialect: tuple[MilText, Callable[[str], str]]) -> None:
    text, scalar = dialect
    assert text.value(packed("FLOAT16", (), b"\x00\x3c")) == f"{scalar('fp16')}(0x1p+0)"
    string = value(tensor("STRING"), r'tensor { strings { values: "say \"\\\" no\nmore" } }')
    assert text.value(string) == scalar("string") + r'("say \"\\\" no\nmore")'


def test_lists_and_tuples(dialect: tuple[MilText, Callable[[str], str]]) -> None:
    text, scalar = dialect
    string = tensor("STRING")
    items = "".join(
        f"values {{ type {{ {string} }} immediateValue"
        f' {{ tensor {{ strings {{ values: "{s}" }} }} }} }}'
        for s in ("cat", "dog")
    )
    listed = value(
        f"listType {{ type {{ {string} }} length {{ constant {{ size: 2 }} }} }}",
        f"list {{ {items} }}",
    )
    assert text.value(listed) == f'list<{scalar("string")}, 2>(["cat", "dog"])'
    paired = value(
        f"tupleType {{ types {{ {string} }} types {{ {string} }} }}", f"tuple {{ {items} }}"
    )
    assert text.value(paired) == f'tuple<{scalar("string")}, {scalar("string")}>(("cat", "dog"))'


def test_weights_stay_where_they_are(dialect: tuple[MilText, Callable[[str], str]]) -> None:
    text, scalar = dialect
    message = text_format.Parse(
        f"type {{ {tensor('UINT6', 8)} }}"
        ' blobFileValue { fileName: "@model_path/w.bin" offset: 64 }',
        MIL_pb2.Value(),
    )
    assert text.value(message) == (
        f'tensor<uint6, [8]>(BLOBFILE(path = {scalar("string")}("@model_path/w.bin"), '
        f"offset = {scalar('uint64')}(64)))"
    )
    assert {blob.file for blob in text.blobs} == {"@model_path/w.bin"}


def test_floats_and_strings_by_themselves() -> None:
    assert [hex_float(x) for x in (1.0, 0.0, -0.0, 0.1875, 2.0**-149, 1e300)] == [
        "0x1p+0",
        "0x0p+0",
        "-0x0p+0",
        "0x1.8p-3",
        "0x1p-149",
        "0x1.7e43c8800759cp+996",
    ]
    assert quote('tab\t, "quote", back\\slash') == r'"tab\t, \"quote\", back\\slash"'


# ---- what cannot be written ----


def broken(change: Callable[[Any], Any]) -> Any:
    message = model(f"description {{ input {{ {feature()} }} }} mlProgram {{ {relu()} }}")
    change(message)
    return message


def block(message: Any) -> Any:
    return message.mlProgram.functions["main"].block_specializations["CoreML7"]


def constant(dtype: str, shape: tuple[int, ...], data: bytes) -> Callable[[Any], Any]:
    """Give the program's operation a constant."""
    return lambda message: (
        block(message).operations[0].attributes["val"].CopyFrom(packed(dtype, shape, data))
    )


def flexible_image(message: Any) -> None:
    message.description.input[0].type.ClearField("multiArrayType")
    image = message.description.input[0].type.imageType
    image.imageSizeRange.widthRange.upperBound = 9


def opset(name: str) -> Callable[[Any], Any]:
    return lambda message: setattr(message.mlProgram.functions["main"], "opset", name)


def main(message: Any) -> Any:
    return message.mlProgram.functions["main"]


def first(message: Any) -> Any:
    return block(message).operations[0]


def type_of(message: Any) -> Any:
    return first(message).outputs[0].type.tensorType


def bound(message: Any, name: str) -> None:
    first(message).inputs["x"].arguments[0].name = name


def immediate(dtype: str, values: str) -> Callable[[Any], Any]:
    """Give the operation a scalar constant."""
    text = f"type {{ {tensor(dtype)} }} immediateValue {{ tensor {{ {values} }} }}"
    return lambda message: text_format.Parse(text, first(message).attributes["val"])


def of_another_kind(message: Any) -> None:
    text = f"type {{ {tensor('INT32', 1)} }} immediateValue {{ list {{ }} }}"
    text_format.Parse(text, first(message).attributes["val"])


def state_among_the_inputs(message: Any) -> None:
    """A state that the description does not tell of."""
    of_input = main(message).inputs[0].type
    wrapped = of_input.tensorType.SerializeToString()
    of_input.stateType.wrappedType.tensorType.ParseFromString(wrapped)


def no_tensor_in_a_file(message: Any) -> None:
    length = "length { constant { size: 1 } }"
    text = f"type {{ listType {{ type {{ {tensor('INT32')} }} {length} }} }}"
    text_format.Parse(
        text + ' blobFileValue { fileName: "@model_path/w.bin" offset: 64 }',
        first(message).attributes["val"],
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: block(m).operations[0].blocks.add(), "relu 'y' holds blocks of its own"),
        (constant("INT8", (3,), b"ab"), "relu 'y': a constant of 3 int8 has 2 values"),
        (constant("INT16", (1,), b"abc"), "a constant of 1 int16 has 3 bytes"),
        (constant("UINT4", (3,), b"abc"), "a constant of 3 uint4 has 3 bytes"),
        (constant("FLOAT8E5M2", (1,), b"a"), "type fp8e5m2 cannot be written"),
        (constant("INT8", (-1,), b"a"), "a constant of unknown shape"),
        (lambda m: block(m).operations[0].attributes["val"].Clear(), "a value without a type"),
        (opset("CoreML99"), "'main' has opset 'CoreML99'; known are CoreML5"),
        (opset("CoreML6"), "no block for its opset CoreML6"),
        (flexible_image, "image input 'x' is of flexible size"),
        (lambda m: block(m).operations[0].ClearField("outputs"), "relu '' has no outputs"),
        (lambda m: m.description.state.add(name="cache"), "has the state 'cache'"),
        (state_among_the_inputs, "has the state 'x'"),
        (lambda m: m.description.functions.add().state.add(name="s"), "has the state 's'"),
        (lambda m: m.mlProgram.functions.clear(), "the program has no function"),
        (lambda m: block(m).ClearField("outputs"), "function 'main' has no outputs"),
        (lambda m: block(m).inputs.add(), "the block of function 'main' has inputs"),
        (lambda m: block(m).attributes["a"].SetInParent(), "'main' has inputs or attributes"),
        (lambda m: first(m).inputs["y"].SetInParent(), "relu 'y': a parameter that is bound to"),
        (lambda m: setattr(first(m), "type", "my op"), "the name 'my op', which is not"),
        (lambda m: setattr(first(m).outputs[0], "name", "a b"), "the name 'a b', which is not"),
        (lambda m: setattr(main(m).inputs[0], "name", "1"), "the name '1', which is not letters"),
        (lambda m: bound(m, "x/y"), "relu 'y': the name 'x/y', which is not letters"),
        (lambda m: setattr(type_of(m), "dataType", 0), "relu 'y': a tensor of data type 0"),
        (lambda m: setattr(type_of(m), "rank", -1), "relu 'y': a tensor of unknown rank"),
        (lambda m: setattr(type_of(m), "rank", 2), "relu 'y': a tensor of rank 2 with 1"),
        (lambda m: type_of(m).dimensions[0].Clear(), "relu 'y': a dimension without a size"),
        (immediate("INT32", "floats { values: 1.5 }"), "type int32 whose values are floats"),
        (immediate("STRING", "ints { values: 1 }"), "type string whose values are ints"),
        (immediate("BOOL", "ints { values: 1 }"), "type bool whose values are ints"),
        (immediate("STRING", 'strings { values: "\\001" }'), "with a control character"),
        (of_another_kind, "relu 'y': a list value of a tensorType"),
        (no_tensor_in_a_file, "relu 'y': a value in a weight file that is no tensor"),
    ],
)
def test_what_is_not_known_is_refused(change: Callable[[Any], Any], problem: str) -> None:
    with pytest.raises(CannotExecute, match=re.escape(problem)):
        written(broken(change))
