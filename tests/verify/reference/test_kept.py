"""Recordings that are kept: read as they were made, under a key that everything is part of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedEmbedding
from convert.errors import InputError
from convert.files.cache import Cache
from convert.values import Resolution
from verify.reference.kept import (
    DOCUMENT,
    TENSORS_FILE,
    kept_recording,
    read_recording,
    recording_key,
    recording_of,
    save_recording,
)
from verify.reference.recording import Case, Denoising, Recording

SIZE = Resolution(64, 96)
# A text encoder's case is called after the embedding's word, which may have slashes.
SMALL = Recording(
    SIZE,
    {
        "text_encoder": (
            Case(
                "embedding a/b",
                {"input_ids": torch.arange(77.0)[None]},
                {
                    "hidden_embeds": torch.randn(1, 77, 4),
                    "pooled_outputs": torch.randn(1, 4),
                },
                {
                    "hidden_embeds": torch.randn(1, 77, 4).half(),
                    "pooled_outputs": torch.randn(1, 4).half(),
                },
            ),
        ),
        "vae_decoder": (
            Case(
                "final latents",
                {"z": torch.randn(1, 4, 12, 8).half()},
                {"image": torch.randn(1, 3, 96, 64)},
            ),
        ),
    },
)


def assert_same(found: Recording, expected: Recording) -> None:
    assert found.resolution == expected.resolution
    assert found.names() == expected.names()
    ours, theirs = found.tensors(), expected.tensors()
    assert list(ours) == list(theirs)  # checks come in this order
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_a_recording_is_read_as_it_was_saved(recording: Recording, tmp_path: Path) -> None:
    for number, made in enumerate((recording, SMALL)):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_recording(made, folder)
        assert_same(read_recording(folder), made)


def changed_bit(folder: Path) -> None:
    """One bit of a tensor, under the file's old size and time."""
    file = folder / TENSORS_FILE
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def shortened(folder: Path) -> None:
    file = folder / TENSORS_FILE
    file.write_bytes(file.read_bytes()[:-5])


def other_cases(folder: Path) -> None:
    """Names that the tensors do not have, under the file's old size and time."""
    file = folder / DOCUMENT
    stat, text = file.stat(), file.read_text()
    file.write_text(text.replace("final latents", "final latentz"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def emptied(folder: Path) -> None:
    for file in (folder / TENSORS_FILE, folder / DOCUMENT):
        file.unlink()


@pytest.mark.parametrize("damage", [changed_bit, shortened, other_cases, emptied])
def test_what_is_kept_is_made_once_and_a_damaged_one_anew(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    made = []

    def make() -> Recording:
        made.append(1)
        return SMALL

    for _ in range(2):
        with Cache(tmp_path / "cache") as cache:
            assert_same(kept_recording(cache, "key", make), SMALL)
    assert len(made) == 1
    damage(tmp_path / "cache" / "recordings" / "key")
    for _ in range(2):
        with Cache(tmp_path / "cache") as cache:
            assert_same(kept_recording(cache, "key", make), SMALL)
    assert len(made) == 2
    with pytest.raises(InputError):
        read_recording(tmp_path)


def test_tensors_and_names_that_do_not_fit_are_no_recording() -> None:
    tensors, names = SMALL.tensors(), SMALL.names()
    for wrong in (
        {name: t for name, t in tensors.items() if "/inputs/" not in name},
        {**tensors, "vae_decoder/final latents/fp8/image": torch.zeros(1)},
        {**tensors, "unet/t=1/inputs/sample": torch.zeros(1)},
        {**tensors, "unet": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"no case has|has no inputs"):
            recording_of(SIZE, names, wrong)


def test_everything_that_determines_a_recording_is_in_its_key(base: Checkpoint) -> None:
    digests = {name: f"{number:064x}" for number, name in enumerate(sorted(base.files))}
    components = ["unet", "text_encoder", "vae_encoder"]
    embedding = AppliedEmbedding(("embeddings/a.pt",), "a", ("a",), ("text_encoder",))

    def key(
        source: Checkpoint = base, known: Any = digests, asked: Any = components, **more: Any
    ) -> str:
        return recording_key(source, known, asked, **{"resolution": SIZE, **more})

    keys = [
        key(),
        key(asked=["unet"]),
        key(fp16=["unet"]),
        key(resolution=Resolution(96, 64)),
        key(denoising=Denoising(timesteps=(999,))),
        key(denoising=Denoising("the horse")),
        key(denoising=Denoising(negative_prompt="")),
        key(denoising=Denoising(guidance=2)),
        key(denoising=Denoising(seed=1)),
        key(device="cuda"),
        key(weights="of some weight file"),
        key(replace(base, scheduler={**base.scheduler, "beta_start": 0.5})),
        key(replace(base, embeddings=(embedding,))),
        *(key(known={**digests, name: "f" * 64}) for name in digests),
    ]
    assert len(set(keys)) == len(keys)
    # What is not run does not matter: the VAE where nobody asks for its cases.
    (vae,) = (name for name in digests if name.startswith("vae/") and "config" not in name)
    other = {**digests, vae: "f" * 64}
    assert key(known=other, asked=["unet"]) == key(asked=["unet"])
    assert key() == key(asked=components[::-1], fp16=["vae_decoder"], denoising=Denoising())
