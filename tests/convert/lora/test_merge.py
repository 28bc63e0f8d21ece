"""Merged tensors: sums, orders, blocks of rows, memory, and values that are too large."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.checkpoint.tensors import StoredTensor
from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from convert.lora import merge
from convert.lora.merge import LoraChange, MergedTensor
from convert.lora.read import read_lora
from tests.support.loras import MAKERS, NEEDS_KERNEL, Tensors, tensors_of, write_lora
from tests.support.tensors import half_steps

KINDS = sorted(MAKERS)


def stored(folder: Path, value: torch.Tensor, dtype: torch.dtype = torch.float16) -> StoredTensor:
    file = write_lora(folder / "weight.safetensors", {"layer": {".weight": value}}, dtype=dtype)
    tensor = read_weights(file).tensors["layer.weight"]
    assert isinstance(tensor, StoredTensor)
    return tensor


def change(folder: Path, tensors: Tensors, strength: float, number: int = 0) -> LoraChange:
    file = write_lora(folder / f"{number}.safetensors", {"layer": tensors})
    (adapter,) = read_lora(file).adapters
    return LoraChange(adapter, strength)


def weight(shape: tuple[int, ...], seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5


shapes = st.one_of(
    st.tuples(st.sampled_from([8, 16, 32]), st.integers(1, 12).map(lambda n: 2 * n)),
    st.tuples(st.sampled_from([8, 16]), st.sampled_from([2, 6]), st.just(3), st.just(3)),
)
strengths = st.floats(-2, 2).map(lambda x: round(x, 3))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, one=strengths, other=strengths, ranks=st.tuples(*[st.integers(1, 6)] * 2))
def test_loras_that_are_added_add_up_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    one: float,
    other: float,
    ranks: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    base = stored(folder, weight(shape))
    first = change(folder, tensors_of("LoRA", shape, 1, ranks[0]), one, 1)
    second = change(folder, tensors_of("LoHa", shape, 2, ranks[1]), other, 2)

    def delta(*changes: LoraChange) -> np.ndarray:
        merged = MergedTensor(base, changes, shape).read(np.float32)
        return merged - base.read(np.float32)

    # float32 sums of numbers below 100
    np.testing.assert_allclose(delta(first, second), delta(first) + delta(second), atol=1e-4)
    np.testing.assert_allclose(delta(first, second), delta(second, first), atol=1e-4)
    twice = LoraChange(first.adapter, 2 * one)
    np.testing.assert_allclose(delta(first, first), delta(twice), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    shape=st.just((16, 6, 3, 3)) | st.just((16, 12)),
    block=st.integers(1, 1000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_blocks_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    shape: tuple[int, ...],
    block: int,
    dtype: torch.dtype,
) -> None:
    kinds = [kind for kind in kinds if len(shape) == 4 or kind not in NEEDS_KERNEL]
    folder = tmp_path_factory.mktemp("merge")
    base = stored(folder, weight(shape), dtype)
    changes = tuple(
        change(folder, tensors_of(kind, shape, n), 0.5, n) for n, kind in enumerate(kinds)
    )
    merged = MergedTensor(base, changes, shape)
    whole = merged.read(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "BLOCK", block)
        patch.setattr(merge, "ROWS", 1)
        parts = merged.read(np.float32)
    # products of other shapes are summed in another order
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_the_order_counts_where_a_lora_replaces_or_scales(tmp_path: Path) -> None:
    shape = (8, 12)
    base = stored(tmp_path, weight(shape))
    added = change(tmp_path, tensors_of("LoRA", shape), 1.0, 1)
    replaced = change(tmp_path, tensors_of("replacement", shape), 1.0, 2)
    first = MergedTensor(base, (added, replaced), shape).read(np.float16)
    np.testing.assert_array_equal(first, MergedTensor(base, (replaced,), shape).read(np.float16))
    second = MergedTensor(base, (replaced, added), shape).read(np.float16)
    assert half_steps(first, second) > 100


def test_values_are_rounded_once(tmp_path: Path) -> None:
    # 1 + 3 × 2⁻¹²: each step is half of float16's at 1, and lost if it is rounded by itself
    value = torch.ones(1, 1)
    base = stored(tmp_path, value)
    small = {".diff": torch.full((1, 1), 2.0**-12)}
    changes = tuple(change(tmp_path, small, 1.0, n) for n in range(3))
    assert MergedTensor(base, changes, (1, 1)).read(np.float16)[0, 0] == 1 + 2.0**-10


def test_norms_of_inputs_are_those_after_the_loras_before(tmp_path: Path) -> None:
    shape = (16, 6, 3, 3)
    base = stored(tmp_path, weight(shape))
    first = change(tmp_path, tensors_of("OFT", shape, 1), 1.0, 1)
    dora = tensors_of("DoRA of inputs", shape, 2)
    second = change(tmp_path, dora, 1.0, 2)
    merged = MergedTensor(base, (first, second), shape).read(np.float32)
    norms = np.linalg.norm(merged.transpose(1, 0, 2, 3).reshape(shape[1], -1), axis=1)
    wanted = dora[".dora_scale"].half().float().numpy().reshape(-1)
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)


def test_a_merged_tensor_is_a_tensor(tmp_path: Path) -> None:
    shape = (8, 6, 1, 1)
    base = stored(tmp_path, weight(shape))
    merged = MergedTensor(base, (change(tmp_path, tensors_of("LoRA", shape), 1.0),), shape)
    flat = merged.reshape((8, 6))
    np.testing.assert_array_equal(flat.read(np.float16), merged.read(np.float16).reshape(8, 6))
    with pytest.raises(ValueError, match="cannot reshape"):
        merged.reshape((8, 7))
    assert merged.files == (base.path, tmp_path / "0.safetensors")
    again = pickle.loads(pickle.dumps(flat))
    assert again == flat
    np.testing.assert_array_equal(again.read(np.float16), flat.read(np.float16))
    digests = dict.fromkeys(merged.files, "0")
    assert merged.key(digests) != flat.key(digests)


@pytest.mark.parametrize(
    ("up", "message"),
    [
        (1e4, r"`layer.weight`\[0, 0\] is 4000000.0, which overflows float16 \(at most 65504.0\)"),
        (6e4, r"is inf"),
    ],
)
def test_a_value_that_is_too_large_names_files_and_modules(
    tmp_path: Path, up: float, message: str
) -> None:
    base = stored(tmp_path, torch.zeros(8, 12))
    tensors = {
        ".lora_up.weight": torch.full((8, 1), up),
        ".lora_down.weight": torch.full((1, 12), 100.0),
    }
    small = change(tmp_path, tensors_of("LoRA", (8, 12)), 0.0001, 1)
    large = change(tmp_path, tensors, 4.0 if up == 1e4 else 3e38, 2)
    merged = MergedTensor(base, (small, large), (8, 12))
    wanted = rf"merged with 1.safetensors \(`layer`\), 2.safetensors \(`layer`\), .*{message}"
    if up == 1e4:
        merged = MergedTensor(base, (large,), (8, 12))
        wanted = rf"2.safetensors: merged with 2.safetensors \(`layer`\), weight {message}"
        assert np.isfinite(merged.read(np.float32)).all()
    with pytest.raises(InputError, match=wanted):
        merged.read(np.float16)


def test_a_lora_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = tensors_of("LoRA", (8, 12))
    tensors[".lora_up.weight"][2, 1] = float("nan")
    merged = MergedTensor(
        stored(tmp_path, weight((8, 12))), (change(tmp_path, tensors, 1.0),), (8, 12)
    )
    with pytest.raises(InputError, match=r"0.safetensors: .*`layer.lora_up.weight`\[2, 1\] is nan"):
        merged.read(np.float16)


def test_memory_does_not_grow_with_the_weight(tmp_path: Path) -> None:
    shape = (8192, 1024)  # 32 MiB in float32
    base = stored(tmp_path, torch.zeros(shape))
    changes = tuple(
        change(tmp_path, tensors_of(kind, shape), 1.0, n)
        for n, kind in enumerate(("LoRA", "DoRA of inputs", "LoKr, whole ⊗ parts"))
    )
    tracemalloc.start()
    for _ in MergedTensor(base, changes, shape).chunks(np.float16):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20  # a chunk of the file, blocks of 1 MiB, the LoRAs' own matrices
