"""A copy with a hole opens as the true file does, or is refused for the same reason."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from convert.checkpoint.derived import Strided
from convert.checkpoint.tensors import StoredTensor
from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from convert.source import holes
from convert.source.holes import write_headers

TENSORS = OrderedDict(
    (f"layers.{n}.weight", torch.full((40, 64), n, dtype=torch.float16)) for n in range(100)
)
WHOLE = sum(tensor.nbytes for tensor in TENSORS.values())


def saved(*, old: bool = False, value: object = TENSORS) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


class Read:
    """Parts of some bytes, which are counted."""

    def __init__(self, data: bytes) -> None:
        self.data, self.count = data, 0

    def __call__(self, start: int, count: int) -> bytes:
        assert 0 <= start <= start + count <= len(self.data)
        self.count += count
        return self.data[start : start + count]


def copied(data: bytes, folder: Path) -> tuple[Path, Path, int]:
    """The file, its copy, and how many bytes that took."""
    true, copy, read = folder / "true" / "file", folder / "copy" / "file", Read(data)
    true.parent.mkdir()
    true.write_bytes(data)
    assert write_headers(copy, len(data), read)
    assert copy.stat().st_size == len(data)
    return true, copy, read.count


def facts(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, t.dtype, t.shape) for name, t in read_weights(path).tensors.items()]


@pytest.mark.parametrize("first", [512, 64])
def test_the_header_of_safetensors_is_enough(
    tmp_path: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "FIRST", first)
    true, copy, count = copied(save(dict(TENSORS), {"ss_tag": "a"}), tmp_path)
    assert facts(copy) == facts(true)
    for name, tensor in read_weights(copy).tensors.items():
        wanted = read_weights(true).tensors[name]
        assert isinstance(tensor, StoredTensor)
        assert isinstance(wanted, StoredTensor)
        assert tensor.offset == wanted.offset
        assert not tensor.codes().any()  # a hole
    assert read_weights(copy).metadata == {"ss_tag": "a"}
    assert count < WHOLE / 20


@pytest.mark.parametrize("first", [1 << 14, 4096, 64])
def test_directory_and_pickle_of_an_archive_are_enough(
    tmp_path: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "FIRST", first)
    monkeypatch.setattr(holes, "LARGEST_EXTRA", 256)
    turned = {"turned": torch.zeros(8, 6, dtype=torch.float16).t(), **TENSORS}
    true, copy, count = copied(saved(value={"state_dict": turned, "epoch": 1}), tmp_path)
    assert facts(copy) == facts(true)
    assert read_weights(copy).others == read_weights(true).others
    assert isinstance(read_weights(copy).tensors["turned"], Strided)
    assert count < WHOLE / 8  # of one of 7 GB: a megabyte or two


def test_an_archive_whose_pickle_stands_behind_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "FIRST", 256)
    monkeypatch.setattr(holes, "LARGEST_EXTRA", 64)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w") as new:
        for entry in reversed(old.infolist()):
            new.writestr(entry.filename, old.read(entry))
    true, copy, count = copied(file.getvalue(), tmp_path)
    assert facts(copy) == facts(true)
    assert count < WHOLE / 8


def test_a_directory_of_a_large_archive_is_found_by_its_own_record() -> None:
    import struct

    small = struct.pack("<4s8xIIH", b"PK\x05\x06", 0xFFFFFFFF, 0xFFFFFFFF, 0)
    large = struct.pack("<4s36xQQ", b"PK\x06\x06", 1000, 6_900_000_000)
    locator = struct.pack("<4s16x", b"PK\x06\x07")
    assert holes._directory(b"x" * 99 + large + locator + small) == 6_900_000_000
    large = struct.pack("<4s36xQQ", b"PK\x06\x06", 1 << 40, 7)  # more than anybody reads
    assert holes._directory(large + locator + small) is None
    assert holes._directory(small) is None
    assert holes._directory(b"nothing of the kind") is None


def test_a_small_file_is_copied_whole(tmp_path: Path) -> None:
    for number, data in enumerate((saved(old=True), save(dict(TENSORS)), b"")):
        assert write_headers(tmp_path / str(number), len(data), Read(data))
        assert (tmp_path / str(number)).read_bytes() == data


def test_what_needs_its_weights_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "FIRST", 256)
    note = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    quantised = save({"a.weight": torch.zeros(20, 20), "a.comfy_quant": note})
    for data in (saved(old=True), quantised):
        assert not write_headers(tmp_path / "copy", len(data), Read(data))
        assert not (tmp_path / "copy").exists()


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 5000)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GGUF" + bytes(4096), id="gguf"),
        pytest.param((1 << 39).to_bytes(8, "little") + b"{" + bytes(4096), id="huge header"),
        pytest.param((9000).to_bytes(8, "little") + b"{" + bytes(4096), id="cut in the header"),
        pytest.param(save(dict(TENSORS))[:-1], id="truncated"),
        pytest.param(saved()[:-2000], id="archive without its end"),
        pytest.param(b"PK\x05\x06" + bytes(18), id="empty archive"),
        pytest.param(compressed(), id="compressed"),
        pytest.param(saved(value={"a": [print]}), id="a pickle that names a function"),
    ],
)
def test_what_is_refused_is_refused_for_the_same_reason(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "FIRST", 2048)
    true, copy, _ = copied(data, tmp_path)
    with pytest.raises(InputError) as wanted:
        read_weights(true)
    with pytest.raises(InputError) as found:
        read_weights(copy)
    assert found.value.problem == wanted.value.problem
