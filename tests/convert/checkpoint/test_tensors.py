"""Tensors by reference: read as safetensors reads them, and damaged files are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from convert.checkpoint.tensors import CHUNK_BYTES, read_header
from convert.errors import InputError

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=4),
    dtype=st.sampled_from(list(DTYPES)),
    wanted=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 99),
)
def test_values_are_those_that_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    dtype: str,
    wanted: type,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator).to(DTYPES[dtype])
    save_file({"other": torch.zeros(3), "x": value}, path)
    tensor = read_header(path)["x"]
    assert (tensor.dtype, tensor.shape) == (dtype, tuple(shape))
    expected = value.float().numpy().astype(wanted)
    np.testing.assert_array_equal(tensor.read(wanted), expected)


def test_a_tensor_larger_than_a_chunk_arrives_in_order(file: Path) -> None:
    value = torch.arange(CHUNK_BYTES // 4 + 1000, dtype=torch.float32)
    save_file({"x": value}, file)
    tensor = read_header(file)["x"]
    sizes = [len(chunk) for chunk in tensor.chunks(np.float32)]
    assert len(sizes) == 2
    np.testing.assert_array_equal(tensor.read(np.float32), value.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_value_that_is_not_finite_is_named(file: Path, bad: float, dtype: str) -> None:
    value = torch.zeros(5, 7, dtype=DTYPES[dtype])
    value[3, 2] = bad
    save_file({"layer.weight": value}, file)
    with pytest.raises(InputError, match=r"`layer.weight`\[3, 2\] is (nan|-?inf): not a finite"):
        read_header(file)["layer.weight"].read(np.float16)


def test_an_overflow_in_float16_says_so_and_float32_holds_it(file: Path) -> None:
    save_file({"w": torch.tensor([1.0, 70000.0])}, file)
    tensor = read_header(file)["w"]
    with pytest.raises(InputError, match=r"`w`\[1\] is 70000.0, which overflows float16"):
        tensor.read(np.float16)
    assert tensor.read(np.float32)[1] == 70000


def test_integers_are_refused(file: Path) -> None:
    save_file({"w": torch.arange(3)}, file)
    with pytest.raises(InputError, match="dtype I64"):
        read_header(file)["w"].read(np.float16)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 300])
def test_a_truncated_file_is_refused_from_its_header(file: Path, keep: int) -> None:
    save_file({"a": torch.zeros(64), "b": torch.ones(64)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_header(file)


def test_a_file_of_another_kind_is_refused(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_header(file)


def test_a_header_that_contradicts_itself_is_refused(file: Path) -> None:
    save_file({"a": torch.zeros(4, 4)}, file)
    file.write_bytes(file.read_bytes().replace(b"[4,4]", b"[4,5]"))
    with pytest.raises(InputError, match=r"tensor `a` of F32\[4, 5\] has 64 bytes"):
        read_header(file)
