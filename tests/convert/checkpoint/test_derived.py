"""Derived tensors give what numpy does, whole and in chunks, and say what determines them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.checkpoint.derived import Rows, Transposed, rows
from convert.checkpoint.tensors import StoredTensor, Tensor, read_header
from convert.errors import InputError
from tests.support.tensors import Sum

VALUES = np.random.default_rng(0).normal(size=(1800, 1300)).astype(np.float16)


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    save_file({"other": VALUES[:3], "x": VALUES}, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors")["x"]


def test_rows_of_a_stored_tensor_are_its_own_bytes(stored: StoredTensor) -> None:
    part = rows(stored, 600, 1200)
    assert isinstance(part, StoredTensor)
    assert part.shape == (600, 1300)
    np.testing.assert_array_equal(part.read(np.float16), VALUES[600:1200])


@pytest.mark.parametrize(("start", "stop"), [(0, 600), (600, 1200), (1799, 1800), (5, 1795)])
def test_rows_of_a_computed_tensor_are_those_of_its_values(
    stored: StoredTensor, start: int, stop: int
) -> None:
    doubled = Sum(stored, stored, stored.shape)
    part = rows(doubled, start, stop)
    assert isinstance(part, Rows)
    wanted = 2 * VALUES[start:stop].astype(np.float32)
    np.testing.assert_array_equal(part.read(np.float32), wanted)
    flat = part.reshape((part.size,)).read(np.float32)
    np.testing.assert_array_equal(flat, wanted.reshape(-1))
    assert sum(len(chunk) for chunk in part.chunks(np.float16)) == part.size


def test_a_transposed_matrix_has_its_columns_for_rows(stored: StoredTensor) -> None:
    turned = Transposed(stored)
    assert turned.shape == (1300, 1800)
    np.testing.assert_array_equal(turned.read(np.float16), VALUES.T)
    chunks = [chunk.copy() for chunk in turned.chunks(np.float32)]
    assert len(chunks) > 1
    np.testing.assert_array_equal(np.concatenate(chunks), VALUES.T.astype(np.float32).reshape(-1))
    np.testing.assert_array_equal(
        turned.reshape((1300, 1800, 1, 1)).read(np.float16)[..., 0, 0], VALUES.T
    )


def test_keys_tell_what_determines_the_values(stored: StoredTensor) -> None:
    digests = {stored.path: "abc"}
    doubled = Sum(stored, stored, stored.shape)
    tensors: list[Tensor] = [
        stored,
        rows(stored, 0, 600),
        rows(stored, 600, 1200),
        rows(doubled, 0, 600),
        rows(doubled, 600, 1200),
        Transposed(stored),
        Transposed(stored).reshape((1300, 1800, 1, 1)),
    ]
    keys = [str(tensor.key(digests)) for tensor in tensors]
    assert len(set(keys)) == len(keys)
    assert all("abc" in key for key in keys)


def test_a_broken_value_is_said_with_its_tensor_and_rows(tmp_path: Path) -> None:
    values = np.ones((9, 2), np.float16)
    values[4, 1] = np.nan
    save_file({"attn.in_proj_weight": values}, tmp_path / "x.safetensors")
    tensor = read_header(tmp_path / "x.safetensors")["attn.in_proj_weight"]
    with pytest.raises(InputError, match=r"`attn.in_proj_weight\[3:6\]`\[1, 1\] is nan"):
        rows(tensor, 3, 6).read(np.float16)
    with pytest.raises(InputError, match=r"`attn.in_proj_weight`\[4, 1\] is nan"):
        Transposed(tensor).read(np.float16)
    rows(tensor, 0, 3).read(np.float16)
