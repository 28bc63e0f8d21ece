"""Files of embeddings: every format that there is, and what is none."""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.embedding.read import KEYS, holds_embedding, read_both, read_embedding
from convert.errors import InputError
from tests.support.embeddings import FORMATS, vectors


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_vectors(name: str, base: Checkpoint, tmp_path: Path) -> None:
    ending, write = FORMATS[name]
    wanted = vectors(base, 3)
    found = read_both(write(tmp_path / f"style{ending}", wanted))
    (inversion,) = found.inversions
    assert inversion.name.strip("<>") == "style"
    assert inversion.count == 3
    assert {*inversion.vectors} == {*wanted}
    for part, values in wanted.items():
        stored = inversion.vectors[part]
        kind = np.float16 if name == "float16" else np.float32
        assert (stored.read(kind) == values.numpy().astype(kind)).all()
    assert found.to_json()["embeddings"][0]["family"] == "SDXL"
    assert "embedding `" in found.line()
    assert "for SDXL: 3 vectors" in found.line()
    assert holds_embedding(found.path) == (name != "inside a LoRA")


def test_either_of_diffusers_two_files_finds_the_other(base: Checkpoint, tmp_path: Path) -> None:
    file = FORMATS["diffusers, two files"][1](
        tmp_path / "learned_embeds.safetensors", vectors(base)
    )
    second = file.with_stem("learned_embeds_2")
    assert {*read_both(second).inversions[0].vectors} == {"text_encoder", "text_encoder_2"}
    file.unlink()
    assert [*read_both(second).inversions[0].vectors] == [""]


def test_other_files_beside_one_mean_nothing(base: Checkpoint, tmp_path: Path) -> None:
    file = FORMATS["kohya"][1](tmp_path / "style.safetensors", vectors(base))
    (tmp_path / "style_2.safetensors").write_bytes(b"something else")
    assert {*read_both(file).inversions[0].vectors} == {"text_encoder", "text_encoder_2"}
    save_file({"emb_params": torch.zeros(1, 24)}, tmp_path / "_2.safetensors")
    assert read_both(tmp_path / "_2.safetensors").inversions[0].name == "_2"


NAMES = st.one_of(
    st.sampled_from([*KEYS, "t5xxl", "<a>", "x.lora_up.weight", "conv.weight", "bundle_emb."]),
    st.builds("bundle_emb.{}{}".format, st.text(max_size=6), st.sampled_from(["", ".clip_l"])),
    st.text(max_size=8),
)
SHAPES = st.lists(st.integers(0, 3), max_size=4)


@settings(deadline=None)
@given(st.dictionaries(NAMES, SHAPES, max_size=4))
def test_any_tensors_are_read_or_refused(shapes: dict[str, list[int]]) -> None:
    header = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "e.safetensors")
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
        holds_embedding(file)
        with suppress(InputError):
            assert read_both(file).inversions


def test_several_inside_a_lora_are_told_apart_by_names_with_dots(tmp_path: Path) -> None:
    sides = {"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(1, 40)}
    held = {f"bundle_emb.{n}.{s}": v.clone() for n in ("a.b", "neg") for s, v in sides.items()}
    save_file({**held, "lora_unet_x.alpha": torch.ones(1)}, tmp_path / "l.safetensors")
    found = read_embedding(tmp_path / "l.safetensors")
    assert [one.name for one in found.inversions] == ["a.b", "neg"]


@pytest.mark.parametrize(
    ("tensors", "family"),
    [
        ({"emb_params": torch.zeros(2, 768)}, "Stable Diffusion 1"),
        ({"<cat>": torch.zeros(768)}, "Stable Diffusion 1"),
        ({"emb_params": torch.zeros(2, 1024)}, "Stable Diffusion 2"),
        ({"<cat>": torch.zeros(1, 1, 1280)}, "SDXL's second text encoder"),
    ],
)
def test_a_file_for_one_text_encoder_says_whose(
    tensors: dict[str, torch.Tensor], family: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "e.safetensors")
    (inversion,) = read_embedding(tmp_path / "e.safetensors").inversions
    assert inversion.family == family
    assert holds_embedding(tmp_path / "e.safetensors")


def test_a_pickle_of_stable_diffusion_webui_is_read(tmp_path: Path) -> None:
    held = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 768))},
        **{"name": "cat", "step": 900, "sd_checkpoint": None, "sd_checkpoint_name": "v1-5"},
    }
    torch.save(held, tmp_path / "cat.pt")
    (inversion,) = read_embedding(tmp_path / "cat.pt").inversions
    assert (inversion.count, inversion.family) == (2, "Stable Diffusion 1")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"clip_l": (2, 24), "clip_g": (3, 40)}, "2 and 3 vectors of `e`"),
        ({"clip_l": (76, 24), "clip_g": (76, 40)}, "76 vectors; a prompt has room for 75"),
        ({"clip_l": (0, 24), "clip_g": (0, 40)}, "has the shape [0, 40], no vectors"),
        ({"clip_l": (2, 2, 24), "clip_g": (2, 40)}, "has the shape [2, 2, 24], no vectors"),
        ({"clip_l": (1, 24), "clip_g": (1, 40), "t5xxl": (1, 64)}, "text encoder that SDXL lacks"),
        ({"clip_l": (1, 24), "odd": (1, 24)}, "tensors such as `odd`"),
        ({"a.lora_up.weight": (1, 1), "a.lora_down.weight": (1, 1)}, "is a LoRA without an"),
        ({"conv_in.weight": (4, 4, 3, 3), "conv_in.bias": (4,)}, "is no embedding (textual inv"),
    ],
)
def test_what_is_no_embedding_is_refused(
    tensors: dict[str, tuple[int, ...]], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "e.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(InputError) as caught:
        read_embedding(path)
    assert problem in str(caught.value)
    assert caught.value.where == str(path)


def test_vectors_of_integers_are_refused(tmp_path: Path) -> None:
    save_file({"clip_l": torch.zeros(1, 24, dtype=torch.int64)}, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match="is of I64, no vectors"):
        read_embedding(tmp_path / "e.safetensors")


def test_what_its_metadata_says_is_kept_where_it_is_about_the_embedding(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"modelspec.title": "style", "prompt": "{...}"}
    save_file(
        {"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(1, 40)}, tmp_path / "e.st", facts
    )
    assert read_embedding(tmp_path / "e.st").facts == {"modelspec.title": "style"}
