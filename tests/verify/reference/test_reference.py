"""The reference loads the checkpoint by itself: a wrong choice of ours cannot be its choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.opening import folder as reader
from convert.opening.door import open_checkpoint
from convert.source.select import WeightFiles
from tests.support.checkpoints import write_component
from verify.question import Question
from verify.reference.reference import Reference
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def two_sets(folder: Path, index: str, infix: str = "", *, keep: bool = True) -> str:
    """Save a folder's weights in shards, other ones than those of the single file beside them."""
    single = next(folder.glob("*.safetensors"))
    stem = single.name.removesuffix(".safetensors")
    tensors = {k: (v * 0.9).contiguous() for k, v in load_file(single).items()}
    names = [f"{stem}-0000{i}-of-00002{infix}.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        part = {k: v for k, v in tensors.items() if weight_map[k] == name}
        save_file(part, folder / name, {"format": "pt"})
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{stem}.safetensors.{index}").write_text(text)
    if not keep:
        single.unlink()
    return single.name


@pytest.fixture
def copy(base: reader.Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.path, tmp_path / "sdxl-1.0"))


@pytest.mark.parametrize(
    ("part", "component"), [("vae", "vae_decoder"), ("text_encoder", "text_encoder")]
)
def test_a_wrong_choice_of_files_fails_verification(
    part: str, component: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = two_sets(copy / part, "index.json")
    good = open_checkpoint(copy)
    package = write_component(tmp_path / "good.mlpackage", good, component, size=(64, 64))
    assert verify(package, good, Question(runtime="torch"))
    real = reader.weight_files

    def wrong(names: Any, folder: str, read: Any) -> WeightFiles:
        found = real(names, folder, read)
        if folder != part:
            return found
        # The VAE's shards are what diffusers loads, the text encoder's what transformers does not.
        files = [single] if found.index else [f.name for f in (copy / part).glob("*-of-*")]
        return WeightFiles(found.variant, tuple(f"{part}/{name}" for name in files))

    monkeypatch.setattr(reader, "weight_files", wrong)
    bad = open_checkpoint(copy)
    assert {t.path for t in bad.parts[part].tensors.values()} != {
        t.path for t in good.parts[part].tensors.values()
    }
    package = write_component(tmp_path / "bad.mlpackage", bad, component, size=(64, 64))
    results = verify(package, bad, Question(runtime="torch"))
    assert {c.level for c in results.failures} == {"conversion"}


def test_an_old_index_is_found_whatever_the_folder_is_called(copy: Path) -> None:
    """diffusers splits the whole path at its dots to spell the old name."""
    two_sets(copy / "vae", "fp16.index.json", ".fp16", keep=False)
    checkpoint = open_checkpoint(copy)
    assert checkpoint.parts["vae"].variant == "fp16"
    with Reference(checkpoint, "vae_decoder") as reference:
        loaded = reference.parameters()["decoder.conv_in.bias"]
        ours = checkpoint.parts["vae"].tensors["decoder.conv_in.bias"]
        assert torch.equal(loaded, torch.from_numpy(ours.read("float32")))
