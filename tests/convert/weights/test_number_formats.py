"""The edges of number formats: every method, on both opsets, decodes to what the rule allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import (
    constexpr_affine_dequantize as affine,
)
from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import (
    constexpr_lut_to_dense as table_16,
)
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_blockwise_shift_scale as blockwise,
)
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
    constexpr_lut_to_dense as table_18,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from bench.exact_palettes import optimal_error
from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import StoredTensor, Tensor, read_header
from convert.errors import InputError
from convert.networks.graph import Input, Module, build
from convert.package.mlpackage import Description
from convert.values import FORMATS, DeploymentTarget
from convert.weights.compress import BLOCK, INTEGERS, Compression, Method
from convert.weights.streams import GroupedTensor, PalettizedTensor, QuantizedTensor
from tests.support.checkpoints import edit_checkpoint, write_component
from tests.support.packages import write_package
from verify.artifact.graph import decoder_parts
from verify.mil import Op, load_program
from verify.runtime.evaluator import Evaluator

LARGEST, SMALLEST = 65504.0, 2.0**-24  # of float16
SHAPE = (4, 64)


def edges() -> dict[str, np.ndarray]:
    """Weights that formats stumble over, float16 [out, in, …]."""
    random = np.random.default_rng(5)
    normal = random.standard_normal(SHAPE)
    outlier = 0.01 * normal
    outlier[2, 5] = LARGEST
    signs = np.where(normal > 0, 1.0, -1.0)
    return {
        name: np.asarray(values, np.float16)
        for name, values in {
            "zero": np.zeros(SHAPE),
            "minus_zero": np.full(SHAPE, -0.0),
            "constant": np.full(SHAPE, 0.3),
            "largest": np.full(SHAPE, LARGEST),
            "two_values": 0.7 * signs,
            "largest_of_both_signs": LARGEST * signs,
            "near_the_largest": signs * random.uniform(60000, LARGEST, SHAPE),
            "up_to_the_largest": np.clip(normal / 2, -1, 1) * LARGEST,
            "outlier": outlier,
            "smallest": SMALLEST * signs,
            "subnormal": SMALLEST * np.rint(300 * normal),
            "tiny_of_both_signs": 1e-5 * normal,
            "a_channel_of_zeros": normal * np.array([[1], [0], [1], [0]]),
            "one_channel": normal[:1],
            "one_input": normal.reshape(-1, 1),
            "convolution": normal.reshape(2, 32, 2, 2),
            "one_element_of_its_kind": np.eye(4, 64) * 3,
        }.items()
    }


def methods_for(weight: np.ndarray, *, is_ios18: bool) -> list[Method]:
    found = [Method(bits) for bits in ("8", "6", "4", "2", "1", "int8")]
    if is_ios18:
        found.append(Method("3"))
        found += [Method("int4")] if weight.shape[1] % BLOCK == 0 else []
        found += [Method(bits, 2) for bits in ("4", "1")] if len(weight) % 2 == 0 else []
    return found


def judge(weight: np.ndarray, decoded: np.ndarray, method: Method, what: str) -> None:
    """Finite, and exact where the method holds all values; else within the method's bound."""
    assert np.isfinite(decoded).all(), what
    exact, value = weight.astype(np.float64), decoded.astype(np.float64)
    if method.bits in INTEGERS:
        count = weight.shape[1] // BLOCK if method.bits == "int4" else 1
        largest = 7 if method.bits == "int4" else 127
        shape = (len(weight), count, -1)
        magnitude = np.abs(exact.reshape(shape)).max(2, keepdims=True)
        # A scale is magnitude / largest to the next float16, which is 2^-10 or 2^-24 away at most.
        scale = magnitude / largest * (1 + 2.0**-10) + SMALLEST
        rounding = np.maximum(np.abs(value) * 2.0**-11, SMALLEST / 2).reshape(shape)
        error = np.abs(exact - value).reshape(shape)
        assert (error <= scale * (0.5 + 1e-5) + rounding).all(), what
        assert (value[exact == 0] == 0).all(), what
        return
    groups = 1 if method.group_size is None else len(weight) // method.group_size
    levels = 2 ** int(method.bits)
    for row, found in zip(exact.reshape(groups, -1), value.reshape(groups, -1), strict=True):
        assert len(np.unique(found)) <= levels, what
        if len(np.unique(row)) <= levels:
            np.testing.assert_array_equal(found, row, err_msg=what)
        else:
            # `fit_groups` is within 1.5 % of the best table, `fit` nearer; then the sums' rounding.
            best = optimal_error(row, levels, float16=True)
            assert np.sum((row - found) ** 2) <= 1.015 * best + 1e-13 * np.sum(row**2), what


def decoded_by_coremltools(op: Op) -> np.ndarray:
    """A weight as the `decompress` of coremltools' own op has it."""
    parts = {name: constant.array() for name, constant in decoder_parts(op, {}).items()}
    if op.type == "constexpr_affine_dequantize":
        return np.asarray(
            affine.decompress(
                parts["quantized_data"], parts["zero_point"], parts["scale"], int(parts["axis"])
            )
        )
    if op.type == "constexpr_blockwise_shift_scale":
        return np.asarray(blockwise.decompress(parts["data"], parts["scale"], None))
    if "shape" in parts:
        return np.asarray(table_16.decompress(parts["lut"], parts["indices"], parts["shape"]))
    bits = int(np.log2(parts["lut"].shape[-2]))
    dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    return np.asarray(table_18.decompress(parts["indices"].astype(dtype), parts["lut"], None))


def package_of(
    path: Path,
    tensors: Mapping[str, Tensor],
    methods: Mapping[str, Method],
    target: DeploymentTarget,
) -> Path:
    """A package whose weights are these, and which does nothing with them but exist."""

    def body(module: Module, x: Any) -> dict[str, Any]:
        for name, tensor in tensors.items():
            product = mb.mul(x=x, y=module.weight(name, tensor.shape))  # no constant, to be folded
            x = mb.add(x=x, y=mb.reduce_sum(x=product, keep_dims=False))
        return {"y": x}

    network = build(
        tensors,
        {"x": Input((1,), np.dtype(np.float16))},
        body,
        dtype=np.float16,
        target=getattr(ct.target, target),
        compression=Compression.of(methods),
    )
    about = Description("a test", "nobody", "none", "1", {"x": "in"}, {"y": "out"})
    write_package(path, network, about, format=FORMATS[target])
    return path


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_every_method_keeps_the_edges(target: DeploymentTarget, tmp_path: Path) -> None:
    """As our evaluator decodes them, and as coremltools does."""
    weights, methods = {}, {}
    for edge, weight in edges().items():
        for method in methods_for(weight, is_ios18=target == "iOS18"):
            name = f"{edge}_{method}".replace(" ", "_")
            weights[name], methods[name] = weight, method
    save_file(weights, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    path = package_of(tmp_path / "x.mlpackage", tensors, methods, target)
    program = load_program(path)
    evaluator = Evaluator(program)
    decoders = {op.outputs[0][0]: op for op in program.ops if op.type.startswith("constexpr_")}
    assert decoders.keys() == weights.keys()
    for name, op in decoders.items():
        decoded = evaluator.constant(name).numpy()
        np.testing.assert_array_equal(decoded, decoded_by_coremltools(op), err_msg=name)
        judge(weights[name], decoded, methods[name], name)


FLOAT16 = hnp.from_dtype(np.dtype(np.float16), allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(
    weight=st.sampled_from([(1, 64), (4, 32), (64, 1), (1, 1), (2, 32, 2, 1)]).flatmap(
        lambda shape: hnp.arrays(np.float16, shape, elements=FLOAT16)
    ),
    method=st.sampled_from(
        [*map(Method, ("8", "6", "4", "3", "2", "1", "int8", "int4")), Method("2", 2)]
    ),
)
@example(weight=np.full((1, 32), LARGEST, np.float16), method=Method("int4"))
@example(weight=np.full((1, 32), -LARGEST, np.float16), method=Method("int8"))
def test_any_finite_weight_is_kept_as_well_as_its_method_can(
    weight: np.ndarray, method: Method
) -> None:
    if method.bits == "int4" and weight.shape[1] % BLOCK:
        method = Method("int8")
    if method.group_size is not None and len(weight) % method.group_size:
        method = Method(method.bits)
    judge(weight, decoded_by(InMemory(weight), method), method, str(method))


class InMemory(StoredTensor):
    """A tensor whose values are there already."""

    def __init__(self, value: np.ndarray) -> None:
        super().__init__("w", "F16", value.shape, Path("none"), 0)
        object.__setattr__(self, "value", value)

    def chunks(self, dtype: Any) -> Any:
        yield self.value.reshape(-1).astype(dtype)  # type: ignore[attr-defined]


def decoded_by(tensor: Tensor, method: Method) -> np.ndarray:
    """What the streamed parts of a compressed tensor decode to."""
    from verify.mil.blob import unpack_bits

    float16 = np.dtype(np.float16)
    if method.bits in INTEGERS:
        return QuantizedTensor(tensor, INTEGERS[method.bits]).quantized().decode()
    bits = int(method.bits)
    source: PalettizedTensor | GroupedTensor = PalettizedTensor(tensor, bits)
    if method.group_size is not None:
        source = GroupedTensor(tensor, bits, method.group_size)
    packed = np.concatenate(list(source.indices.chunks(np.dtype(np.uint8))))
    lut = np.concatenate(list(source.lut.chunks(float16))).reshape(source.groups, -1)
    rows = unpack_bits(packed, bits, tensor.size).reshape(source.groups, -1)
    return np.take_along_axis(lut, rows.astype(np.int64), axis=1).reshape(tensor.shape)


# ---- values that float16 cannot hold ----


@pytest.mark.parametrize("bits", ["16", "4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_beyond_float16_is_named(
    base: Checkpoint, tmp_path: Path, bits: str, dtype: torch.dtype
) -> None:
    name = "text_projection.weight"

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = weights[name].to(dtype)
        weights[name][3, 1] = 1e5

    wide = edit_checkpoint(base, tmp_path, "text_encoder_2", change)
    with pytest.raises(InputError) as caught:
        write_component(tmp_path / "x.mlpackage", wide, "text_encoder_2", bits=bits)
    assert f"`{name}`[3, 1] is " in str(caught.value)
    assert "overflows float16 (at most 65504.0)" in str(caught.value)
    assert "A VAE can stay in float32" in str(caught.value)
    assert not list(tmp_path.glob("*.mlpackage"))
