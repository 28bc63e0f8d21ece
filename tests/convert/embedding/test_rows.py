"""Rows below a table, and means of rows: by reference, in pieces, with keys that say all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.checkpoint.tensors import Tensor, read_header
from convert.embedding.rows import MeanRows, Stacked
from convert.errors import InputError

DIGEST = "d"


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Tensor]:
    """A table larger than a chunk, and vectors in another file and dtype."""
    torch.manual_seed(0)
    save_file({"table": torch.randn(700_000, 4).half()}, tmp_path / "a.safetensors")
    save_file({"vectors": torch.randn(2, 4)}, tmp_path / "b.safetensors")
    return {
        n: t
        for file in ("a", "b")
        for n, t in read_header(tmp_path / f"{file}.safetensors").items()
    }


def test_the_rows_lie_below_each_other(tables: dict[str, Tensor]) -> None:
    table, vectors = tables.values()
    whole = Stacked.of(table, vectors, MeanRows.of(table, ((1,),)))
    assert whole.shape == (700_003, 4)
    assert (whole.dtype, Stacked.of(table, table).dtype) == ("F32", "F16")
    assert whole.files == (*table.files, *vectors.files)
    parts = [t.read(np.float16) for t in (table, vectors)]
    wanted = np.concatenate([*parts, parts[0][1:2]])
    assert (whole.read(np.float16) == wanted).all()
    assert max(len(chunk) for chunk in whole.chunks(np.float16)) * 2 <= 4 << 20
    flat = whole.reshape((1, *whole.shape))
    assert flat.read(np.float32).shape == (1, 700_003, 4)
    with pytest.raises(ValueError, match="cannot reshape"):
        whole.reshape((2, 2))


def test_means_are_of_their_rows_wherever_chunks_end(tables: dict[str, Tensor]) -> None:
    table = tables["table"]
    values = table.read(np.float32)
    rows = ((0, 1, 2), (699_999,), (524_287, 524_288), (524_287,))
    means = MeanRows.of(table, rows)
    found = means.read(np.float32)
    assert means.shape == found.shape == (4, 4)
    for mean, of in zip(found, rows, strict=True):
        assert np.allclose(mean, values[list(of)].mean(axis=0), rtol=1e-6)
    assert means.reshape((16,)).read(np.float16).shape == (16,)


def test_keys_say_what_determines_the_values(tables: dict[str, Tensor]) -> None:
    table, vectors = tables.values()
    digests = dict.fromkeys([*table.files, *vectors.files], DIGEST)
    keys = [
        Stacked.of(table, vectors).key(digests),
        Stacked.of(vectors, table).key(digests),
        Stacked.of(table, vectors).reshape((1, 700_002, 4)).key(digests),
        MeanRows.of(table, ((1, 2),)).key(digests),
        MeanRows.of(table, ((1,), (2,))).key(digests),
        MeanRows.of(table, ((1, 3),)).key(digests),
        MeanRows.of(vectors, ((1, 2),)).key(digests),
    ]
    assert len({repr(key) for key in keys}) == len(keys)
    changed = {**digests, vectors.path: "e"}
    assert Stacked.of(table, vectors).key(changed) != keys[0]


def test_a_vector_that_is_not_finite_is_named_with_its_file(tmp_path: Path) -> None:
    save_file({"clip_l": torch.tensor([[1.0, 1e6]])}, tmp_path / "e.safetensors")
    (vectors,) = read_header(tmp_path / "e.safetensors").values()
    with pytest.raises(InputError, match="overflows float16") as caught:
        Stacked.of(vectors).read(np.float16)
    assert caught.value.where == str(tmp_path / "e.safetensors")
