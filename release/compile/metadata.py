"""`metadata.json`: what apps and Xcode tell of a compiled model; Core ML does not read it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from convert.errors import CannotExecute
from release.compile.mil_text import OPSETS, XCODE, block_of, described
from release.compile.op_versions import versioned_name

# By specification version; Core ML's release notes, and compiled models of 6 to 9.
AVAILABILITY = {
    6: ("12.0", "15.0", "1.0", "8.0", "15.0", "15.0"),
    7: ("13.0", "16.0", "1.0", "9.0", "16.0", "16.0"),
    8: ("14.0", "17.0", "1.0", "10.0", "17.0", "17.0"),
    9: ("15.0", "18.0", "2.0", "11.0", "18.0", "18.0"),
    10: ("26.0", "26.0", "26.0", "26.0", "26.0", "26.0"),
}
SYSTEMS = ("macOS", "tvOS", "visionOS", "watchOS", "iOS", "macCatalyst")
ARRAYS = {
    "FLOAT16": "Float16",
    "FLOAT32": "Float32",
    "DOUBLE": "Double",
    "INT32": "Int32",
    "INT8": "Int8",
}
COLORS = {
    "GRAYSCALE": "Grayscale",
    "RGB": "RGB",
    "BGR": "BGR",
    "GRAYSCALE_FLOAT16": "Grayscale16Half",
}


def metadata_json(model: Any, name: str) -> str:
    """The file's text.

    Args:
        model: a `Model` message that holds an ML Program.
        name: the package's, without suffix; Xcode names a class after it.

    Raises:
        CannotExecute: a specification version or a type whose words are not known.
    """
    return _pretty([metadata(model, name)])


def metadata(model: Any, name: str) -> dict[str, Any]:
    """The file's one object; see `metadata_json`."""
    version, description = model.specificationVersion, model.description
    if version not in AVAILABILITY:
        known = ", ".join(map(str, AVAILABILITY))
        raise CannotExecute(f"specification version {version}; known are {known}")
    functions = model.mlProgram.functions
    default = description.defaultFunctionName or "main"
    if default not in functions:
        raise CannotExecute(f"the default function {default!r} is not in the program")
    facts: dict[str, Any] = {"metadataOutputVersion": "3.0"}
    texts = {
        "shortDescription": description.metadata.shortDescription,
        "version": description.metadata.versionString,
        "author": description.metadata.author,
        "license": description.metadata.license,
    }
    facts.update((key, text) for key, text in texts.items() if text)
    facts.update(_function_facts(model, default))
    facts.update(
        modelParameters=[],
        specificationVersion=version,
        isUpdatable="1" if model.isUpdatable else "0",
        availability=dict(zip(SYSTEMS, AVAILABILITY[version], strict=True)),
        modelType={"name": "MLModelType_mlProgram"},
        # Sorted, because a protobuf map has another order in every process.
        userDefinedMetadata=dict(sorted(description.metadata.userDefined.items())),
        generatedClassName=re.sub(r"[^A-Za-z0-9_]", "_", name),
        method="predict",
    )
    if description.functions:
        facts["defaultFunctionName"] = default
        facts["functions"] = [_named_function(model, n) for n in sorted(functions)]
    return facts


def _named_function(model: Any, name: str) -> dict[str, Any]:
    facts = {"name": name, **_function_facts(model, name)}
    facts.pop("storagePrecision", None)  # told of the model alone
    return facts


def _function_facts(model: Any, name: str) -> dict[str, Any]:
    """What is told of a function, and of the model for its default function."""
    function = model.mlProgram.functions[name]
    description = described(model.description, name)
    operations = block_of(function, name).operations
    opset = int(OPSETS[function.opset].removeprefix("ios"))
    counts = Counter(op.type for op in operations if op.type != "const")
    facts: dict[str, Any] = {
        "inputSchema": [_feature(f) for f in description.input],
        "outputSchema": [_feature(f) for f in description.output],
        "stateSchema": [_feature(f) for f in description.state],
        "mlProgramOperationTypeHistogram": {
            versioned_name(op, opset): count for op, count in sorted(counts.items())
        },
    }
    if compute := _compute_types(operations):
        facts["computePrecision"] = _one_or_mixed(compute)
    if storage := _storage_types(operations):
        facts["storagePrecision"] = _one_or_mixed(storage)
    return facts


def _compute_types(operations: Iterable[Any]) -> set[str]:
    """The numeric types of all operations' outputs, constants' too."""
    numbers = {
        output.type.tensorType.dataType
        for op in operations
        for output in op.outputs
        if output.type.WhichOneof("type") == "tensorType"
    }
    return {name for name in map(_dtype, numbers) if name not in ("Bool", "String")}


def _storage_types(operations: Iterable[Any]) -> set[str]:
    """How the values are stored that weight files hold."""
    found = set()
    for op in operations:
        if op.type == "const":
            value = op.attributes["val"]
            if value.WhichOneof("value") == "blobFileValue":
                found.add(_dtype(value.type.tensorType.dataType))
        elif op.type.startswith("constexpr_"):
            parts = dict(op.attributes)  # where iOS 16 has them; iOS 18 has them among the inputs
            for key, argument in op.inputs.items():
                parts.update((key, b.value) for b in argument.arguments if b.HasField("value"))
            if any(p.WhichOneof("value") == "blobFileValue" for p in parts.values()):
                found.add(_stored(op.type, parts))
    return found


def _stored(decoder: str, parts: dict[str, Any]) -> str:
    """How a decoder's weights are stored."""
    if "sparse" in decoder:
        return "Sparse"
    if "lut" in parts:
        # iOS 16: [2^bits]. iOS 18: [groups…, 2^bits, vector].
        shape = [d.constant.size for d in parts["lut"].type.tensorType.dimensions]
        entries = shape[0] if len(shape) == 1 else shape[-2]
        return f"Palettized ({entries.bit_length() - 1} bits)"
    if "lut" in decoder and "indices" in parts:  # whose palette another operation decodes
        bits = _dtype(parts["indices"].type.tensorType.dataType).removeprefix("UInt")
        return f"Palettized ({bits} bits)"
    data = [parts[k] for k in ("quantized_data", "data", "source_val") if k in parts]
    if not data:
        raise CannotExecute(f"{decoder} has no data to decode")
    return _dtype(data[0].type.tensorType.dataType)


def _dtype(number: int) -> str:
    from coremltools.proto import MIL_pb2

    name = MIL_pb2.DataType.Name(number)
    return name.replace("UINT", "UInt") if name.startswith("UINT") else name.capitalize()


def _one_or_mixed(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else f"Mixed ({', '.join(sorted(names))})"


def _feature(feature: Any) -> dict[str, str]:
    kind = feature.type.WhichOneof("Type")
    entry = {
        "name": feature.name,
        "shortDescription": feature.shortDescription,
        "isOptional": "1" if feature.type.isOptional else "0",
    }
    if kind == "multiArrayType":
        return {**entry, **_array(feature.type.multiArrayType, "MultiArray")}
    if kind == "stateType":
        state = _array(feature.type.stateType.arrayType, "State")
        del state["hasShapeFlexibility"]  # a state's shape is always fixed
        return {**entry, **state}
    if kind == "imageType":
        return {**entry, **_image(feature.type.imageType)}
    simple = {"int64Type": "Int64", "doubleType": "Double", "stringType": "String"}
    if kind in simple:
        return {**entry, "type": simple[kind], "formattedType": simple[kind]}
    if kind == "dictionaryType":
        key = "Int64" if feature.type.dictionaryType.HasField("int64KeyType") else "String"
        formatted = f"Dictionary ({key} → Double)"
        return {**entry, "type": "Dictionary", "keyType": key, "formattedType": formatted}
    raise CannotExecute(f"{feature.name!r} is of {kind}, which has no words here", hint=XCODE)


def _array(array: Any, type_: str) -> dict[str, str]:
    name = ARRAYS.get(array.ArrayDataType.Name(array.dataType))
    if name is None:
        raise CannotExecute(f"an array of data type {array.dataType}", hint=XCODE)
    size = " × ".join(map(str, array.shape))
    entry = {
        "type": type_,
        "dataType": name,
        "shape": str(list(array.shape)),
        "formattedType": f"{type_} ({name} {size})" if size else f"{type_} ({name})",
        "hasShapeFlexibility": "1" if array.WhichOneof("ShapeFlexibility") else "0",
    }
    if array.HasField("shapeRange"):
        ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
        texts = [str(low) if low == high else f"{low}...{_bound(high)}" for low, high in ranges]
        entry["shapeFlexibility"] = " × ".join(texts)
        entry["shapeRange"] = str([list(r) for r in ranges])
    elif array.HasField("enumeratedShapes"):
        shapes = [list(s.shape) for s in array.enumeratedShapes.shapes]
        entry["shapeFlexibility"] = " | ".join(" × ".join(map(str, s)) for s in shapes)
        entry["enumeratedShapes"] = str(shapes)
    return entry


def _image(image: Any) -> dict[str, str]:
    color = COLORS.get(image.ColorSpace.Name(image.colorSpace), "")
    entry = {
        "type": "Image",
        "width": str(image.width),
        "height": str(image.height),
        "colorspace": color,
        "isColor": "1" if color in ("RGB", "BGR") else "0",
        "formattedType": f"Image ({'Color' if color in ('RGB', 'BGR') else color} "
        f"{image.width} × {image.height})",
        "hasSizeFlexibility": "1" if image.WhichOneof("SizeFlexibility") else "0",
    }
    if image.HasField("imageSizeRange"):
        sizes = image.imageSizeRange
        pairs = [(r.lowerBound, r.upperBound) for r in (sizes.widthRange, sizes.heightRange)]
        entry["sizeFlexibility"] = " × ".join(f"{low}...{_bound(high)}" for low, high in pairs)
        entry["sizeRange"] = str([list(pair) for pair in pairs])
    elif image.HasField("enumeratedSizes"):
        each = [(s.width, s.height) for s in image.enumeratedSizes.sizes]
        entry["sizeFlexibility"] = " | ".join(f"{w} × {h}" for w, h in each)
        entry["enumeratedSizes"] = str([list(s) for s in each])
    return entry


def _bound(high: int) -> str:
    return "" if high < 0 else str(high)


def _pretty(value: Any, indent: str = "") -> str:
    """JSON laid out as Foundation does it."""
    inner = indent + "  "
    if isinstance(value, dict):
        items = [
            f"{json.dumps(k, ensure_ascii=False)} : {_pretty(v, inner)}" for k, v in value.items()
        ]
        opening, closing = "{", "}"
    elif isinstance(value, list):
        items, opening, closing = [_pretty(v, inner) for v in value], "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    body = ",\n".join(f"{inner}{item}" for item in items)
    return f"{opening}\n{body}\n{indent}{closing}"
