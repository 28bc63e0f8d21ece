"""The toy as a single file opens as the toy, and diffusers itself reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.toy import CHECKPOINT, write_toy_file
from convert.toy.single_file import ldm_arrays
from convert.toy.streamed import StreamedTensor, write_safetensors
from verify.reference.reference import quiet


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    write_toy_file(path)
    return path


def test_it_holds_all_that_the_folder_does(file: Path) -> None:
    wanted = open_checkpoint(CHECKPOINT)
    found = open_checkpoint(file, base=wanted)
    for name, part in wanted.parts.items():
        assert found.parts[name].config == part.config
        for key, tensor in part.tensors.items():
            mine = found.parts[name].tensors[key].read(np.float32)
            np.testing.assert_array_equal(mine, tensor.read(np.float32))


def test_it_is_written_as_safetensors_writes(file: Path) -> None:
    from safetensors.numpy import save

    arrays = ldm_arrays(open_checkpoint(CHECKPOINT))
    assert file.read_bytes() == save(arrays, {"format": "pt"})


def test_tensors_are_streamed_with_wide_ones_first(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save

    large = np.arange(3 << 20, dtype=np.float32).reshape(3, -1)
    wide = StreamedTensor(
        "F32", large.shape, lambda: [large[:1].reshape(-1), large[1:].reshape(-1)]
    )
    narrow = StreamedTensor("F16", (2,), lambda: [np.ones(2, np.float16)])
    told: list[int] = []
    write_safetensors(tmp_path / "a", {"b": wide, "a": narrow}, advance=told.append)
    assert (tmp_path / "a").read_bytes() == save(
        {"a": np.ones(2, np.float16), "b": large}, {"format": "pt"}
    )
    assert told == [4 << 20, 8 << 20, 4]
    assert load_file(tmp_path / "a")["b"].shape == (3, 1 << 20)


def test_diffusers_reads_the_same_of_it(file: Path) -> None:
    import torch
    from diffusers import StableDiffusionXLPipeline

    with quiet():
        whole = StableDiffusionXLPipeline.from_single_file(
            str(file), config=str(CHECKPOINT), local_files_only=True
        )
    for name, part in open_checkpoint(CHECKPOINT).parts.items():
        own = {
            k.removeprefix("text_model."): v for k, v in getattr(whole, name).state_dict().items()
        }
        for key, tensor in part.tensors.items():
            assert torch.equal(own[key], torch.from_numpy(tensor.read(np.float32))), key


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is called \.safetensors"):
        write_toy_file(tmp_path / "toy.ckpt")
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_toy_file(tmp_path / "a.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"my model")
    with pytest.raises(InputError, match="is there already"):
        write_toy_file(tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == b"my model"
