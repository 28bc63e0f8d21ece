"""What a file is, its content says: weights are read, and anything else is called what it is."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from tests.support.fuzz_weights import fuzz


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "bin", "zip", "txt", ""])
def test_the_content_says_what_a_file_is_whatever_its_name(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.{suffix}"
    value = torch.arange(4.0)
    save_file({"w": value}, file, {"about": "me"})
    found = read_weights(file)
    assert (found.path, found.format, found.metadata) == (file, "safetensors", {"about": "me"})
    for is_zip, name in ((True, "zip pickle"), (False, "legacy pickle")):
        torch.save({"w": value, "step": 3}, file, _use_new_zipfile_serialization=is_zip)
        found = read_weights(file)
        assert (found.format, found.metadata, found.others) == (name, {}, ("step",))
        assert found.tensors["w"].read(np.float32).tolist() == [0, 1, 2, 3]


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for name in names:
            written.writestr(name, b"x")
    return stream.getvalue()


def numpy_archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(2))
    return stream.getvalue()


def numpy_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(2))
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x051.0.0" + bytes(100)
OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "a GGUF file, whose weights are quantised"),
    "HTML": (b"\n<!DOCTYPE html><html><head></head></html>", "is a web page"),
    "HTML in capitals": (b"<HTML><BODY>Sign in</BODY></HTML>", "is a web page"),
    "an error's JSON": (b'{"error": "Unauthorized"}', "is a JSON document"),
    "Git LFS": (POINTER, "is a Git LFS pointer"),
    "a zip": (archive("model.safetensors", "readme.txt"), "it holds model.safetensors, readme.txt"),
    "an empty zip": (archive(), "it holds nothing"),
    "a numpy archive": (numpy_archive(), "is a numpy archive"),
    "a numpy array": (numpy_array(), r"is a numpy array \(\.npy\)"),
    "ONNX": (ONNX, "is an ONNX model"),
    "Flax": (b"\x84\xa6params\x81\xa1a\xc0" + bytes(100), "is a msgpack file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "is a gzip archive"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a picture"),
    "a tar": (b"pickle".ljust(257, b"\0") + b"ustar\0" + bytes(300), "is a tar archive"),
    "a text": (b"You have to be logged in to download this model.\n" * 99, "is a text"),
    "a short text": (b"404", "is a text"),
    "zeros": (bytes(4096), "is a file of zeros"),
    "noise": (b"\xfe\xedsome bytes" * 50, "not a readable safetensors file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_file_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, problem = OTHERS[name]
    for file in (tmp_path / "x.safetensors", tmp_path / "x.ckpt"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=problem) as error:
            read_weights(file)
        assert error.value.where == str(file)
        assert error.value.hint


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    cases = {"gone": "no such file", "loop": "cannot be read", "pipe": "is not a file"}
    for name, problem in cases.items():
        with pytest.raises(InputError, match=problem):
            read_weights(tmp_path / name)
    (tmp_path / "detail.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a folder") as error:
        read_weights(tmp_path)
    assert error.value.hint == "Give the file itself; the folder holds detail.safetensors."
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(Path("a\0b"))


def test_a_scaled_weight_in_a_pickle_is_scaled(tmp_path: Path) -> None:
    codes = torch.full((2, 2), 3.0).to(torch.float8_e4m3fn)
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    tensors = {"a.weight": codes, "a.weight_scale": torch.tensor(0.5), "a.comfy_quant": note}
    torch.save(tensors, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt").tensors
    assert list(found) == ["a.weight"]
    assert found["a.weight"].read(np.float16).tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_spoilt_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, cases=5000, seed=1)
    assert not tally.faults, "\n".join(tally.faults[:20])
    # Both ends are met: what is read although it was changed, and what is refused.
    assert tally.read > 200
    assert tally.refused > 2000
