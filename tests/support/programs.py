"""Comparing programs op by op, and building small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verify.mil import Block, Constant, Op, Program, TensorType


def assert_same(one: Program, other: Program) -> None:
    """Names, types, order, constants' values and places are all the same; only the path is not."""
    for fact in (
        "opset",
        "specification_version",
        "inputs",
        "outputs",
        "author",
        "license",
        "short_description",
        "version",
        "user_defined",
    ):
        assert getattr(one, fact) == getattr(other, fact), fact
    assert list(one.main.inputs.items()) == list(other.main.inputs.items())
    assert one.main.outputs == other.main.outputs
    assert len(one.ops) == len(other.ops)
    for a, b in zip(one.ops, other.ops, strict=True):
        assert (a.type, a.name, a.outputs, a.blocks) == (b.type, b.name, b.outputs, b.blocks)
        assert a.attributes.keys() == b.attributes.keys(), a.name
        for key, value in a.attributes.items():
            assert_same_constant(value, b.attributes[key])
        assert a.inputs.keys() == b.inputs.keys(), a.name
        for key, values in a.inputs.items():
            for left, right in zip(values, b.inputs[key], strict=True):
                if isinstance(left, Constant) and isinstance(right, Constant):
                    assert_same_constant(left, right)
                else:
                    assert left == right, (a.name, key)


def assert_same_constant(one: Constant, other: Constant) -> None:
    assert one.type == other.type
    assert (one.file is None, one.offset) == (other.file is None, other.offset)
    if one.file is not None and other.file is not None:
        assert one.file.path.name == other.file.path.name
        return
    left, right = one.value, other.value
    assert left is not None
    assert right is not None
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()  # NaN and the sign of zero, too


def one_op(type_: str, **inputs: list[str | Constant]) -> Program:
    """A program that takes x and gives what one op makes of it."""
    number = TensorType("fp32", (1,))
    op = Op(type_, "it", inputs, {}, [("y", number)])
    main = Block({"x": number}, [op], ["y"])
    return Program(Path("one.mlpackage"), "CoreML8", 9, [], [], main)


def stateful(path: Path) -> Path:
    """A package that reads and writes a state, as coremltools makes it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    types = {"dtype": ct.converters.mil.mil.types.fp16}

    @mb.program(
        input_specs=[mb.TensorSpec((2,), **types), mb.StateTensorSpec((2,), **types)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, cache: Any) -> Any:
        return mb.coreml_update_state(state=cache, value=mb.add(x=mb.read_state(input=cache), y=x))

    return _save(program, path, ct.target.iOS18)


def looping(path: Path) -> Path:
    """A package with a `cond`, whose branches are blocks of their own."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        positive = mb.squeeze(x=mb.greater(x=x, y=0.0))
        return mb.cond(pred=positive, _true_fn=lambda: mb.exp(x=x), _false_fn=lambda: mb.sin(x=x))

    return _save(program, path, ct.target.iOS17)


def _save(program: Any, path: Path, target: Any) -> Path:
    import coremltools as ct

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        skip_model_load=True,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    model.save(str(path))
    return path
