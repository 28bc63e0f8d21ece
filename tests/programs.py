"""Comparing programs op by op, and building small ones."""

from __future__ import annotations

from verify.mil import Constant, Program


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
