"""`metadata.json`: what it tells of inputs, outputs, precisions and operations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from coremltools.proto import MIL_pb2, Model_pb2

from convert.errors import CannotExecute
from release.compile.metadata import metadata, metadata_json
from release.compile.op_versions import versioned_name


@pytest.fixture
def model() -> Any:
    """A model with one function and nothing in it."""
    message = Model_pb2.Model(specificationVersion=8)
    function = message.mlProgram.functions["main"]
    function.opset = "CoreML7"
    function.block_specializations["CoreML7"].SetInParent()
    return message


def operations(message: Any, name: str = "main") -> Any:
    function = message.mlProgram.functions[name]
    return function.block_specializations[function.opset].operations


def set_type(type_: Any, dtype: str, *shape: int) -> None:
    type_.tensorType.dataType = MIL_pb2.DataType.Value(dtype)
    type_.tensorType.rank = len(shape)
    for size in shape:
        type_.tensorType.dimensions.add().constant.size = size


def add(message: Any, op: str, dtype: str = "FLOAT16") -> Any:
    """An operation with one output."""
    found = operations(message).add(type=op)
    set_type(found.outputs.add(name=f"y{len(operations(message))}").type, dtype, 4)
    return found


def in_file(value: Any, dtype: str, *shape: int) -> None:
    """Make a value one that the weight file holds."""
    set_type(value.type, dtype, *shape)
    value.blobFileValue.offset = 64


def test_what_is_always_there(model: Any) -> None:
    facts = metadata(model, "silero-vad v6.0")
    assert facts == {
        "metadataOutputVersion": "3.0",
        "inputSchema": [],
        "outputSchema": [],
        "stateSchema": [],
        "mlProgramOperationTypeHistogram": {},
        "modelParameters": [],
        "specificationVersion": 8,
        "isUpdatable": "0",
        "availability": {
            "macOS": "14.0",
            "tvOS": "17.0",
            "visionOS": "1.0",
            "watchOS": "10.0",
            "iOS": "17.0",
            "macCatalyst": "17.0",
        },
        "modelType": {"name": "MLModelType_mlProgram"},
        "userDefinedMetadata": {},
        "generatedClassName": "silero_vad_v6_0",
        "method": "predict",
    }


def test_texts_appear_only_where_there_are_some(model: Any) -> None:
    about = model.description.metadata
    about.author, about.license, about.versionString = "me", "MIT", "2"
    about.shortDescription = 'says "hello"\nand \\ goes'
    about.userDefined["prediction_type"] = "epsilon"
    facts = metadata(model, "a")
    assert (facts["author"], facts["license"], facts["version"]) == ("me", "MIT", "2")
    assert facts["userDefinedMetadata"] == {"prediction_type": "epsilon"}
    assert json.loads(metadata_json(model, "a")) == [facts]


@pytest.mark.parametrize(
    ("version", "macos", "ios"), [(6, "12.0", "15.0"), (7, "13.0", "16.0"), (9, "15.0", "18.0")]
)
def test_availability_follows_the_specification(
    model: Any, version: int, macos: str, ios: str
) -> None:
    model.specificationVersion = version
    found = metadata(model, "a")["availability"]
    assert (found["macOS"], found["iOS"], found["macCatalyst"]) == (macos, ios, ios)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("FLOAT32", "Float32"),
        ("FLOAT16", "Float16"),
        ("DOUBLE", "Double"),
        ("INT32", "Int32"),
        ("INT8", "Int8"),
    ],
)
def test_arrays(model: Any, dtype: str, name: str) -> None:
    feature = model.description.input.add(name="x", shortDescription="what it is")
    array = feature.type.multiArrayType
    array.dataType = array.ArrayDataType.Value(dtype)
    array.shape.extend([1, 512])
    feature.type.isOptional = True
    bare = model.description.output.add(name="y").type.multiArrayType
    bare.dataType = array.dataType
    facts = metadata(model, "a")
    assert facts["inputSchema"] == [
        {
            "hasShapeFlexibility": "0",
            "isOptional": "1",
            "dataType": name,
            "formattedType": f"MultiArray ({name} 1 × 512)",
            "shortDescription": "what it is",
            "shape": "[1, 512]",
            "name": "x",
            "type": "MultiArray",
        }
    ]
    (output,) = facts["outputSchema"]
    assert (output["shape"], output["formattedType"]) == ("[]", f"MultiArray ({name})")


def test_flexible_arrays(model: Any) -> None:
    ranged = model.description.input.add(name="r").type.multiArrayType
    listed = model.description.input.add(name="e").type.multiArrayType
    for array in (ranged, listed):
        array.dataType = array.FLOAT32
        array.shape.extend([1, 4])
    for low, high in ((1, 1), (0, 2048)):
        ranged.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    for shape in ([1, 2], [1, 4]):
        listed.enumeratedShapes.shapes.add(shape=shape)
    r, e = metadata(model, "a")["inputSchema"]
    assert r["hasShapeFlexibility"] == e["hasShapeFlexibility"] == "1"
    assert (r["shapeFlexibility"], r["shapeRange"]) == ("1 × 0...2048", "[[1, 1], [0, 2048]]")
    assert (e["shapeFlexibility"], e["enumeratedShapes"]) == ("1 × 2 | 1 × 4", "[[1, 2], [1, 4]]")
    assert "shapeRange" not in e
    assert "enumeratedShapes" not in r


def test_images_and_classes(model: Any) -> None:
    description = model.description
    image = description.input.add(name="image").type.imageType
    image.width, image.height, image.colorSpace = 224, 112, image.RGB
    grey = description.input.add(name="mask").type.imageType
    grey.width, grey.height, grey.colorSpace = 8, 8, grey.GRAYSCALE
    description.output.add(name="classLabel").type.stringType.SetInParent()
    description.output.add(name="probs").type.dictionaryType.stringKeyType.SetInParent()
    facts = metadata(model, "a")
    colour, mask = facts["inputSchema"]
    assert (colour["width"], colour["height"]) == ("224", "112")
    assert (colour["formattedType"], colour["colorspace"]) == ("Image (Color 224 × 112)", "RGB")
    assert (colour["isColor"], colour["hasSizeFlexibility"]) == ("1", "0")
    assert (mask["formattedType"], mask["isColor"]) == ("Image (Grayscale 8 × 8)", "0")
    label, probabilities = facts["outputSchema"]
    assert (label["type"], label["formattedType"]) == ("String", "String")
    assert probabilities["formattedType"] == "Dictionary (String → Double)"
    assert probabilities["keyType"] == "String"
    every = [*facts["inputSchema"], *facts["outputSchema"]]
    # MochiDiffusion hides a model whose schema holds anything but strings.
    assert all(isinstance(value, str) for entry in every for value in entry.values())


def test_states(model: Any) -> None:
    array = model.description.state.add(name="cache").type.stateType.arrayType
    array.dataType = array.FLOAT16
    array.shape.extend([1, 8])
    (state,) = metadata(model, "a")["stateSchema"]
    assert (state["type"], state["formattedType"]) == ("State", "State (Float16 1 × 8)")


def test_precisions_and_counts(model: Any) -> None:
    add(model, "const", "STRING")
    add(model, "const", "INT32")
    add(model, "greater", "BOOL")
    add(model, "einsum")
    add(model, "einsum")
    facts = metadata(model, "a")
    assert facts["computePrecision"] == "Mixed (Float16, Int32)"
    assert facts["mlProgramOperationTypeHistogram"] == {"Ios16.einsum": 2, "Ios17.greater": 1}
    assert "storagePrecision" not in facts
    in_file(add(model, "const").attributes["val"], "FLOAT16", 4)
    assert metadata(model, "a")["storagePrecision"] == "Float16"


def test_compressed_weights_of_ios16(model: Any) -> None:
    palette = add(model, "constexpr_lut_to_dense")
    in_file(palette.attributes["indices"], "UINT8", 3)
    in_file(palette.attributes["lut"], "FLOAT16", 64)
    assert metadata(model, "a")["storagePrecision"] == "Palettized (6 bits)"
    in_file(add(model, "constexpr_affine_dequantize").attributes["quantized_data"], "UINT8", 3)
    in_file(add(model, "constexpr_sparse_to_dense").attributes["nonzero_data"], "FLOAT16", 3)
    facts = metadata(model, "a")
    assert facts["storagePrecision"] == "Mixed (Palettized (6 bits), Sparse, UInt8)"
    assert facts["computePrecision"] == "Float16"  # what decoders take does not count


def test_compressed_weights_of_ios18(model: Any) -> None:
    palette = add(model, "constexpr_lut_to_dense")
    in_file(palette.inputs["indices"].arguments.add().value, "UINT3", 4, 4)
    in_file(palette.inputs["lut"].arguments.add().value, "FLOAT16", 2, 1, 8, 1)
    linear = add(model, "constexpr_blockwise_shift_scale")
    in_file(linear.inputs["data"].arguments.add().value, "INT4", 4, 4)
    assert metadata(model, "a")["storagePrecision"] == "Mixed (Int4, Palettized (3 bits))"


def test_a_palette_that_another_operation_decodes_is_told_by_its_indices(model: Any) -> None:
    palette = add(model, "constexpr_lut_to_dense")
    in_file(palette.inputs["indices"].arguments.add().value, "UINT2", 4, 4)
    palette.inputs["lut"].arguments.add().name = "decoded"
    assert metadata(model, "a")["storagePrecision"] == "Palettized (2 bits)"


def test_several_functions_are_told_one_by_one(model: Any) -> None:
    program, description = model.mlProgram, model.description
    del program.functions["main"]
    for name, op in (("second", "relu"), ("first", "gelu")):
        function = program.functions[name]
        function.opset = "CoreML8"
        function.block_specializations["CoreML8"].operations.add(type=op)
        inputs = description.functions.add(name=name).input
        array = inputs.add(name=f"{name}_x").type.multiArrayType
        array.dataType = array.FLOAT32
    description.defaultFunctionName = "second"
    facts = metadata(model, "a")
    assert facts["defaultFunctionName"] == "second"
    assert facts["mlProgramOperationTypeHistogram"] == {"Ios18.relu": 1}
    assert [f["name"] for f in facts["inputSchema"]] == ["second_x"]
    assert [f["name"] for f in facts["functions"]] == ["first", "second"]
    assert facts["functions"][0]["mlProgramOperationTypeHistogram"] == {"Ios18.gelu": 1}
    description.defaultFunctionName = "third"
    with pytest.raises(CannotExecute, match="the default function 'third' is not"):
        metadata(model, "a")


@pytest.mark.parametrize(
    ("op", "opset", "name"),
    [
        ("einsum", 17, "Ios16.einsum"),  # what MochiDiffusion and Guernika look for
        ("einsum", 18, "Ios16.einsum"),
        ("softmax", 17, "Ios16.softmax"),
        ("softmax", 18, "Ios18.softmax"),
        ("reduce_mean", 18, "Ios16.reduceMean"),
        ("layer_norm", 15, "LayerNorm"),
        ("layer_norm", 17, "Ios17.layerNorm"),
        ("split", 18, "Split"),
        ("range_1d", 17, "Range1d"),
        ("scaled_dot_product_attention", 18, "Ios18.scaledDotProductAttention"),
        ("an_op_of_later", 18, "AnOpOfLater"),
    ],
)
def test_operations_are_named_by_their_definition(op: str, opset: int, name: str) -> None:
    assert versioned_name(op, opset) == name


def test_the_layout_is_foundations(model: Any) -> None:
    model.description.metadata.userDefined["é/"] = "1"
    text = metadata_json(model, "a")
    assert text.startswith('[\n  {\n    "metadataOutputVersion" : "3.0",\n')
    assert text.endswith("\n  }\n]")
    assert '"modelParameters" : [\n\n    ]' in text
    assert '"mlProgramOperationTypeHistogram" : {\n\n    }' in text
    assert '"userDefinedMetadata" : {\n      "é/" : "1"\n    }' in text


def test_what_has_no_words_is_refused(model: Any) -> None:
    model.specificationVersion = 99
    with pytest.raises(CannotExecute, match="specification version 99; known are 6"):
        metadata(model, "a")
    model.specificationVersion = 8
    feature = model.description.input.add(name="s")
    feature.type.sequenceType.stringType.SetInParent()
    with pytest.raises(CannotExecute, match="'s' is of sequenceType"):
        metadata(model, "a")
