"""Compressed tensors are read no more often than they must be, whoever computes their values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.checkpoint.tensors import StoredTensor
from convert.checkpoint.weights import read_weights
from convert.lora.merge import LoraChange, MergedTensor
from convert.lora.read import read_lora
from convert.weights.streams import PalettizedTensor, QuantizedTensor
from tests.support.loras import tensors_of, write_lora

SHAPE = (96, 64)


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    value = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    file = write_lora(tmp_path / "weight.safetensors", {"layer": {".weight": value}})
    tensor = read_weights(file).tensors["layer.weight"]
    assert isinstance(tensor, StoredTensor)
    return tensor


@pytest.fixture
def merged(stored: StoredTensor, tmp_path: Path) -> MergedTensor:
    file = write_lora(tmp_path / "lora.safetensors", {"layer": tensors_of("LoRA", SHAPE)})
    (adapter,) = read_lora(file).adapters
    return MergedTensor(stored, (LoraChange(adapter, 0.5),), SHAPE)


def count(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[str]:
    """The names of tensors of a kind, once for each time that their values are asked for."""
    found: list[str] = []
    original = kind.chunks  # type: ignore[attr-defined]

    def chunks(self: StoredTensor, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        found.append(self.name)
        return original(self, dtype)

    monkeypatch.setattr(kind, "chunks", chunks)
    return found


def streamed(source: PalettizedTensor) -> tuple[bytes, bytes]:
    """The indices and the table, in the order in which a weight file asks for them."""
    indices, lut = (
        b"".join(chunk.tobytes() for chunk in part.chunks(np.dtype(np.float16)))
        for part in (source.indices, source.lut)
    )
    return indices, lut


def test_a_palette_merges_once(merged: MergedTensor, monkeypatch: pytest.MonkeyPatch) -> None:
    values = merged.read(np.float16)
    merges = count(monkeypatch, MergedTensor)
    source = PalettizedTensor(merged, 8)
    indices, lut = streamed(source)
    assert merges == ["layer.weight"]
    decoded = np.frombuffer(lut, np.float16)[np.frombuffer(indices, np.uint8)].reshape(SHAPE)
    assert np.abs(decoded - values).max() < 0.05  # 256 entries over some 6,000 values
    assert streamed(source) == (indices, lut)  # nothing was lost with the first time
    assert len(merges) == 2


def test_a_palette_reads_what_is_stored_twice(
    stored: StoredTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count(monkeypatch, StoredTensor)
    streamed(PalettizedTensor(stored, 4))
    assert len(reads) == 2


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_come_from_one_reading(
    merged: MergedTensor, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    wanted = QuantizedTensor(merged, bits).quantized()
    merges = count(monkeypatch, MergedTensor)
    source = QuantizedTensor(merged, bits)
    list(source.data.chunks(np.dtype(np.int8)))
    (scale,) = source.scale.chunks(np.dtype(np.float16))
    assert len(merges) == 1
    np.testing.assert_array_equal(scale, wanted.scale.reshape(-1))
    (again,) = source.scale.chunks(np.dtype(np.float16))  # asked for by itself
    np.testing.assert_array_equal(again, scale)
