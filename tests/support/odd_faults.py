"""More faults of graphs and of weight files, of which nobody has told us: found by looking.

As in `graph_faults`: each changes a model, and returns the name of what is wrong then, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from convert.package.mlpackage import WEIGHTS
from tests.support.graph_faults import Fault, Spoiled, named, rename, taken


def input_of_equal_type(model: Spoiled) -> str | None:
    """An op takes another value of the same type."""
    by_type: dict[bytes, list[str]] = {}
    places = []
    for op in model.operations:
        if op.type == "const" or op.type.startswith("constexpr_"):
            continue
        for argument in op.inputs.values():
            for binding in argument.arguments:
                others = by_type.get(model.types.get(binding.name, b""), [])
                if any(name != binding.name for name in others):
                    places.append((op, binding, [n for n in others if n != binding.name]))
        for output in op.outputs:
            by_type.setdefault(model.types[output.name], []).append(output.name)
    place = model.one(places)
    if place is None:
        return None
    op, binding, others = place
    binding.name = model.one(others)
    return named(op)


def another_argument(model: Spoiled) -> str | None:
    """Any constant that an op is given, a little changed: axes, pads, flags, modes, epsilons."""
    places = []
    for op in model.operations:
        for parameter in () if op.type == "const" else op.inputs:
            value = model.value(op, parameter)
            if value is not None and value.size:
                places.append((op, parameter, value))
    place = model.one(places)
    if place is None:
        return None
    op, parameter, value = place
    at = (model.random or Random(0)).randrange(value.size)
    flat = value.reshape(-1)
    if value.dtype.kind == "f":
        flat[at] = np.nextafter(flat[at], value.dtype.type(9))
    else:
        flat[at] = ~flat[at] if value.dtype.kind == "b" else flat[at] + 1
    model.set_value(op, parameter, value)
    return named(op)


def another_text(model: Spoiled) -> str | None:
    """Another equation, mode, dtype or kind of padding."""
    texts = {"TANH_APPROXIMATION": "EXACT", "EXACT": "TANH_APPROXIMATION", "fp16": "fp32"}
    texts |= {"fp32": "fp16", "int32": "int16", "custom": "valid", "uint16": "int16"}
    texts["nchw,nwhu->nchu"] = "nchw,nchu->nwhu"
    places = []
    for op in model.operations:
        for parameter in () if op.type == "const" else op.inputs:
            const = model.maker(op, parameter)
            if const is not None and const.type == "const":
                strings = const.attributes["val"].immediateValue.tensor.strings.values
                if len(strings) == 1 and strings[0] in texts:
                    places.append((op, const, strings))
    place = model.one(places)
    if place is None:
        return None
    op, const, strings = place
    text = texts[strings[0]]
    fresh = type(const).FromString(const.SerializeToString())
    fresh.attributes["val"].immediateValue.tensor.strings.values[0] = text
    (name,) = {p for p in op.inputs if taken(op, p) == const.outputs[0].name}
    fresh.outputs[0].name = f"{named(op)}_{name}_planted"
    rename(fresh, fresh.outputs[0].name)
    owner = named(op)
    model.insert(fresh, before=owner)
    model.find(owner).inputs[name].arguments[0].name = fresh.outputs[0].name
    return owner


def values_exchanged(model: Spoiled) -> str | None:
    """What a concatenation joins, or an einsum multiplies, in another order."""
    found = [
        op
        for op in model.of_type("concat", "stack", "einsum")
        if len({b.name for b in op.inputs["values"].arguments}) > 1
    ]
    op = model.one(found)
    if op is None:
        return None
    first, *_, last = op.inputs["values"].arguments
    first.name, last.name = last.name, first.name
    return named(op)


def interleaved(model: Spoiled) -> str | None:
    """A concatenation that takes by turns."""
    op = model.one([op for op in model.of_type("concat") if "interleave" in op.inputs])
    if op is None:
        return None
    model.set_value(op, "interleave", np.array(True))
    return named(op)


def factors_exchanged(model: Spoiled) -> str | None:
    """Mean and variance, or gamma and beta, of a norm."""
    op = model.one(model.of_type("batch_norm", "layer_norm"))
    if op is None or not {"gamma", "beta"} <= set(op.inputs):
        return None
    pairs = [("gamma", "beta"), *([("mean", "variance")] if op.type == "batch_norm" else [])]
    one, other = model.one(pairs) or ("", "")
    a, b = op.inputs[one].arguments[0], op.inputs[other].arguments[0]
    a.name, b.name = b.name, a.name
    return named(op)


def declared_type(model: Spoiled) -> str | None:
    """An op declares another shape or dtype than what it gives."""
    found = [op for op in model.operations if op.outputs and op.type != "const"]
    op = model.one([o for o in found if o.outputs[0].type.tensorType.dimensions])
    if op is None:
        return None
    tensor = op.outputs[0].type.tensorType
    if (model.random or Random(0)).random() < 0.3:
        tensor.dataType = 11 if tensor.dataType == 10 else 10  # float32, float16
    else:
        tensor.dimensions[-1].constant.size += 1
    return named(op)


def input_declared(model: Spoiled) -> str | None:
    """An input of the function is declared in another dtype than the interface has."""
    main = model.model.mlProgram.functions["main"]
    given = model.one(list(main.inputs))
    if given is None:
        return None
    tensor = given.type.tensorType
    tensor.dataType = 11 if tensor.dataType == 10 else 10
    return str(given.name)


def input_of_any_size(model: Spoiled) -> str | None:
    """An input that may have another size than the declared one."""
    feature = model.one(list(model.model.description.input))
    if feature is None:
        return None
    shapes = feature.type.multiArrayType.enumeratedShapes.shapes
    for more in (0, 8):
        shapes.add().shape.extend(n + more for n in feature.type.multiArrayType.shape)
    return str(feature.name)


def optional_input(model: Spoiled) -> str | None:
    """An input that may be left out."""
    feature = model.one(list(model.model.description.input))
    if feature is None:
        return None
    feature.type.isOptional = True
    return str(feature.name)


def outputs_exchanged(model: Spoiled) -> str | None:
    """The order of outputs, or which op gives the only one."""
    main = model.model.mlProgram.functions["main"]
    outputs = main.block_specializations[main.opset].outputs
    if len(outputs) > 1:
        outputs[0], outputs[1] = outputs[1], outputs[0]
        return str(outputs[0])
    last = next(op for op in model.operations if op.outputs and op.outputs[0].name == outputs[0])
    previous = model.producers.get(taken(last, "x"))
    if previous is None or previous.type == "const":
        return None
    # The op before gives the output's name, and the last one another.
    name, other = str(outputs[0]), str(previous.outputs[0].name)
    for op in model.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                binding.name = name if binding.name == other else binding.name
    previous.outputs[0].name, last.outputs[0].name = name, other
    return name


def another_function(model: Spoiled) -> str | None:
    """The only function has another name than Core ML looks for."""
    functions = model.model.mlProgram.functions
    functions["other"].CopyFrom(functions["main"])
    del functions["main"]
    return "other"


def block_for_another_system(model: Spoiled) -> str | None:
    """A second block, which newer systems might take."""
    main = model.model.mlProgram.functions["main"]
    block = main.block_specializations["CoreML9"]
    block.CopyFrom(main.block_specializations[main.opset])
    del block.operations[-1]
    return "CoreML9"


def weight_that_nothing_takes(model: Spoiled) -> str | None:
    """One more constant, with the values of another."""
    const = model.one(
        [
            op
            for op in model.of_type("const")
            if op.attributes["val"].WhichOneof("value") == "blobFileValue"
        ]
    )
    if const is None:
        return None
    fresh = type(const).FromString(const.SerializeToString())
    fresh.outputs[0].name = "planted"
    rename(fresh, "planted")
    first = next(op for op in model.operations if op.type != "const")
    model.insert(fresh, before=named(first))
    return "planted"


def weight_of_another(model: Spoiled) -> str | None:
    """A constant, table or indices in the weight file, in place of another's of the same type."""
    places: dict[bytes, list[Any]] = {}
    for op in model.operations:
        for value in op.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                key = value.type.SerializeToString(deterministic=True)
                places.setdefault(key, []).append((op, value))
    groups = [group for group in places.values() if len(group) > 1]
    group = model.one(groups)
    if group is None:
        return None
    op, value = model.one(group)
    _, other = model.one([(o, v) for o, v in group if v is not value])
    value.blobFileValue.offset = other.blobFileValue.offset
    return str(op.outputs[0].name)


ODD_FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        input_of_equal_type,
        another_argument,
        another_text,
        values_exchanged,
        interleaved,
        factors_exchanged,
        declared_type,
        input_declared,
        input_of_any_size,
        optional_input,
        outputs_exchanged,
        another_function,
        block_for_another_system,
        weight_that_nothing_takes,
        weight_of_another,
    )
}


# ---- of weight files ----


def constant_of_ours_in_the_file(package: Path, random: np.random.Generator) -> str | None:
    """One step of one value of what the weight file has beside the checkpoint's tensors."""
    from verify.mil import load_program

    found = [
        (name, constant)
        for name, constant in load_program(package).constants()
        if constant.file is not None
        and name.startswith(("y", "zeros", "ones", "causal"))
        and constant.type.dtype in ("fp16", "fp32")
    ]
    if not found:
        return None
    name, constant = found[random.integers(len(found))]
    assert constant.file is not None
    start, size = constant.file.check(constant.offset, constant.type.dtype, constant.type.shape)
    step = 2 if constant.type.dtype == "fp16" else 4
    at = start + step * int(random.integers(size // step))
    _change(package, lambda data: data.__setitem__(at, data[at] ^ 1))
    return name


def longer_file(package: Path, random: np.random.Generator) -> str | None:
    """Something behind the last weight."""
    file = package / WEIGHTS
    content = file.read_bytes() + random.bytes(64)
    file.unlink()
    file.write_bytes(content)
    return "behind its blobs"


def between_weights(package: Path, random: np.random.Generator) -> str | None:
    """Something between two weights, or in the record of one."""
    content = (package / WEIGHTS).read_bytes()
    places = [
        at for at in range(64, len(content), 64) if content[at : at + 4] == b"\xef\xbe\xad\xde"
    ]
    record = places[random.integers(len(places))]
    _change(package, lambda data: data.__setitem__(record + 40, 1))
    return str(record)


FILE_FAULTS: dict[str, Callable[[Path, np.random.Generator], str | None]] = {
    function.__name__: function
    for function in (constant_of_ours_in_the_file, longer_file, between_weights)
}


def _change(package: Path, change: Callable[[bytearray], object]) -> None:
    file = package / WEIGHTS
    content = bytearray(file.read_bytes())
    change(content)
    file.unlink()
    file.write_bytes(content)
