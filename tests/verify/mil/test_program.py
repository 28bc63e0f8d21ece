"""Packages are read as coremltools wrote them, and broken ones are named as such."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.errors import CannotExecute, InputError
from tests.support.packages import MODEL, edit_model
from verify.mil import TensorType, histogram, load_program
from verify.mil.blob import WeightFile, packed_size, unpack_bits

ct = pytest.importorskip("coremltools")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3×3 convolution with a 4 KiB weight, and everything the interface can say."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[mb.TensorSpec((1, 8, 6, 6), dtype=types.fp16)],
        opset_version=ct.target.iOS17,
    )
    def program(x: Any) -> Any:
        weight = np.arange(16 * 8 * 9, dtype=np.float16).reshape(16, 8, 3, 3) / 1024
        y = mb.conv(x=x, weight=weight, pad_type="custom", pad=[1, 1, 1, 1], name="conv_1")
        return mb.relu(x=y, name="y")

    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.author, model.license, model.version = "someone", "Apache-2.0", "3"
    model.short_description = "a test"
    model.input_description["x"] = "the input"
    model.user_defined_metadata["variant"] = "original"
    path = tmp_path_factory.mktemp("program") / "small.mlpackage"
    model.save(str(path))
    return path


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def weights_of(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/weights/weight.bin"


def test_program_says_what_the_package_says(package: Path) -> None:
    program = load_program(package)
    assert program.opset == "CoreML7"
    assert program.specification_version == 8
    assert [(f.name, f.shape, f.description) for f in program.inputs] == [
        ("x", (1, 8, 6, 6), "the input")
    ]
    assert [f.name for f in program.outputs] == ["y"]
    assert program.main.inputs == {"x": TensorType("fp16", (1, 8, 6, 6))}
    assert program.main.outputs == ["y"]
    assert (program.author, program.license, program.version) == ("someone", "Apache-2.0", "3")
    assert program.short_description == "a test"
    assert program.user_defined["variant"] == "original"
    assert {k: n for k, n in histogram(program).items() if k != "const"} == {"conv": 1, "relu": 1}
    (conv,) = (op for op in program.ops if op.type == "conv")
    assert conv.name == "conv_1"
    assert conv.outputs == [("conv_1", TensorType("fp16", (1, 16, 6, 6)))]
    assert conv.inputs["x"] == ["x"]


def test_constants_are_exact_and_read_only_when_asked(package: Path) -> None:
    program = load_program(package)
    constants = dict(program.constants())
    (conv,) = (op for op in program.ops if op.type == "conv")
    weight = constants[conv.inputs["weight"][0]]
    assert weight.file is not None
    assert weight.file._bytes is None
    expected = np.arange(16 * 8 * 9, dtype=np.float16).reshape(16, 8, 3, 3) / 1024
    np.testing.assert_array_equal(weight.array(), expected)
    assert constants[conv.inputs["pad"][0]].item() == [1, 1, 1, 1]
    assert constants[conv.inputs["pad_type"][0]].item() == "custom"


def test_reading_a_weight_never_changes_the_file(copy: Path) -> None:
    before = weights_of(copy).read_bytes()
    constant = next(c for _, c in load_program(copy).constants() if c.file)
    constant.array()[...] = 0
    assert weights_of(copy).read_bytes() == before


def damage(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda w: w.write_bytes(w.read_bytes()[:1000]), "truncated"),
        (lambda w: w.write_bytes(b""), "only 0 bytes"),
        (lambda w: w.unlink(), "missing"),
        (lambda w: damage(w, 64, b"\0"), "0xdeadbeef"),
        (lambda w: damage(w, 4, struct.pack("<I", 1)), "version 1"),
        (lambda w: damage(w, 68, struct.pack("<I", 2)), "fp32, not fp16"),
        (lambda w: damage(w, 72, struct.pack("<Q", 1000)), "1000 bytes"),
        (lambda w: damage(w, 0, b"version https://git-lfs.github.com/spec/v1"), "Git LFS"),
    ],
)
def test_damaged_weights_are_an_error_with_the_path(
    copy: Path, break_it: Callable[[Any], object], says: str
) -> None:
    break_it(weights_of(copy))
    constant = next(c for _, c in load_program(copy).constants() if c.file)
    with pytest.raises(InputError, match=says) as error:
        constant.array()
    assert error.value.where == str(weights_of(copy))
    assert error.value.hint


def first(model: Any, type_: str) -> Any:
    function = next(iter(model.mlProgram.functions.values()))
    block = function.block_specializations[function.opset]
    return next(op for op in block.operations if op.type == type_)


def tensor_of(model: Any, dtype: int) -> Any:
    """The value of a `const` of a data type, whose elements stand in the program."""
    function = next(iter(model.mlProgram.functions.values()))
    block = function.block_specializations[function.opset]
    values = (op.attributes["val"] for op in block.operations if op.type == "const")
    return next(v for v in values if v.type.tensorType.dataType == dtype)


STRING, INT32 = 2, 23  # MIL.proto's DataType


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: first(m, "const").attributes.pop("val"), "a `const` without a value"),
        (lambda m: first(m, "const").ClearField("outputs"), "a `const` without a value"),
        (
            lambda m: setattr(first(m, "conv").outputs[0].type.tensorType, "dataType", 97),
            "data type 97",
        ),
        (
            lambda m: tensor_of(m, STRING).immediateValue.tensor.strings.ClearField("values"),
            "with 0 texts",
        ),
        (
            lambda m: tensor_of(m, INT32).immediateValue.tensor.strings.values.extend("abcd"),
            "with other values",
        ),
    ],
)
def test_a_damaged_program_is_an_error_with_the_path(
    copy: Path, break_it: Callable[[Any], object], says: str
) -> None:
    edit_model(copy, break_it)
    with pytest.raises(InputError, match=f"is damaged: it has .*{says}") as error:
        load_program(copy)
    assert error.value.where == str(copy / MODEL)
    assert error.value.hint


def test_unreadable_packages_are_typed_errors(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such package"):
        load_program(tmp_path / "nothing.mlpackage")
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(CannotExecute, match=r"no Manifest\.json"):
        load_program(tmp_path / "empty.mlpackage")

    manifest = copy / "Manifest.json"
    good = manifest.read_text()
    entries = json.loads(good)
    entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"] = "../../x.mlmodel"
    manifest.write_text(json.dumps(entries))
    with pytest.raises(InputError, match="allowed is the name of a file in this folder"):
        load_program(copy)
    manifest.write_text("{}")
    with pytest.raises(InputError, match="`itemInfoEntries` is missing"):
        load_program(copy)
    manifest.write_text(good)

    model = copy / "Data/com.apple.CoreML/model.mlmodel"
    model.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="not a Core ML model"):
        load_program(copy)
    model.write_bytes(b"")
    with pytest.raises(InputError, match="holds no model"):
        load_program(copy)
    model.unlink()
    with pytest.raises(InputError, match="missing"):
        load_program(copy)


def test_other_kinds_of_model_are_typed_errors(copy: Path) -> None:
    from coremltools.proto import Model_pb2

    model = copy / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(model.read_bytes())
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(CannotExecute, match="has 2: main, other"):
        load_program(copy)
    spec.neuralNetwork.SetInParent()
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(CannotExecute, match="this model is neuralNetwork"):
        load_program(copy)


@given(
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=40),
)
def test_bits_unpack_as_coremltools_packs_them(bits: int, values: list[int]) -> None:
    from coremltools.optimize._utils import pack_elements_into_bits

    elements = np.array(values, np.uint8) & ((1 << bits) - 1)
    packed = pack_elements_into_bits(elements, bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, len(elements)), elements)


@pytest.mark.parametrize("dtype", ["int4", "uint1", "uint2", "uint3", "uint4", "uint6"])
def test_blobs_read_as_coremltools_writes_them(tmp_path: Path, dtype: str) -> None:
    writer_of = pytest.importorskip("coremltools.libmilstoragepython")._BlobStorageWriter
    bits = int(dtype.lstrip("uint"))
    low = -8 if dtype == "int4" else 0
    values = np.random.default_rng(0).integers(low, low + (1 << bits), 37)
    values = values.astype(np.int8 if dtype == "int4" else np.uint8)
    path = tmp_path / "weight.bin"
    writer = writer_of(str(path))
    first = getattr(writer, f"write_{dtype}_data")(values)
    second = writer.write_float_data(np.float32([1, 2, 3]))
    del writer
    file = WeightFile(path)
    np.testing.assert_array_equal(file.read(first, dtype, (37,)), values)
    np.testing.assert_array_equal(file.read(second, "fp32", (3,)), [1, 2, 3])
    assert packed_size(dtype, 37) == -(-37 * bits // 8)
    with pytest.raises(InputError, match="no blob record"):
        file.read(second + 64 * 100, "fp32", (3,))
