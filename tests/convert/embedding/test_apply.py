"""Embeddings on a whole checkpoint: rows, ids, tokenizers, and what cannot be added."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.small_files import library_folder, small_files, write_small_files
from convert.embedding.apply import TABLE, Embedding, apply
from convert.errors import InputError
from convert.lora.apply import Lora
from convert.lora.apply import apply as with_loras
from convert.opening.door import open_checkpoint
from convert.tokenizer.app import app_files
from convert.tokenizer.chain import pieces, ranks_of
from convert.tokenizer.clip import read_tokenizers
from tests.support.checkpoints import EOS, edit_checkpoint, write_json
from tests.support.embeddings import FORMATS, vectors, write_embedding

SIZE = EOS + 1  # tokens of a tiny checkpoint


def added(checkpoint: Checkpoint, *embeddings: Path, **tokens: str) -> Checkpoint:
    """The checkpoint with embeddings, each with the token of its file's stem if that is given."""
    return apply(checkpoint, [Embedding(path, tokens.get(path.stem)) for path in embeddings])


@pytest.fixture
def style(base: Checkpoint, tmp_path: Path) -> Path:
    return write_embedding(tmp_path / "mystyle.safetensors", vectors(base, 3))


@pytest.fixture
def negative(base: Checkpoint, tmp_path: Path) -> Path:
    return write_embedding(tmp_path / "badhands.safetensors", vectors(base, 1, seed=1))


def test_the_rows_are_the_checkpoint_s_the_vectors_and_means_of_pieces(
    base: Checkpoint, style: Path, negative: Path
) -> None:
    made = added(base, style, negative)
    for part, seeds in vectors(base, 3).items():
        before = base.parts[part].tensors[TABLE].read(np.float32)
        after = made.parts[part].tensors[TABLE]
        found = after.read(np.float32)
        assert (found[:SIZE] == before).all()
        assert (found[SIZE : SIZE + 3] == seeds.numpy()).all()
        assert (found[SIZE + 3] == vectors(base, 1, seed=1)[part].numpy()).all()
        assert (
            len(found) == made.tokenizers["tokenizer"].size == made.parts[part].config["vocab_size"]
        )
        ids = made.tokenizers["tokenizer"].ids
        assert ids["mystylec</w>"] == SIZE + 2
        first, second = made.tokenizers["tokenizer"].pairs[len(base.tokenizers["tokenizer"].pairs)]
        mean = before[[ids[first], ids[second]]].mean(axis=0)
        assert np.allclose(found[ids[first + second]], mean)
        assert after.files == (*base.parts[part].tensors[TABLE].files, style, negative)
    assert [one.words for one in made.embeddings] == [
        ("mystyle", "mystyleb", "mystylec"), ("badhands",),
    ]  # fmt: skip
    assert made.bare is base
    assert (
        pickle.loads(pickle.dumps(made)).parts.keys() == base.parts.keys()
    )  # for worker processes


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_makes_the_same_checkpoint(
    name: str, base: Checkpoint, style: Path, tmp_path: Path
) -> None:
    ending, write = FORMATS[name]
    (tmp_path / "other").mkdir()
    file = write(tmp_path / "other" / f"mystyle{ending}", vectors(base, 3))
    found, wanted = added(base, file), added(base, style)
    for part in vectors(base):
        rows = [made.parts[part].tensors[TABLE].read(np.float16) for made in (found, wanted)]
        assert (rows[0] == rows[1]).all()
    assert found.tokenizers == wanted.tokenizers
    assert found.embeddings[0].words == wanted.embeddings[0].words


def test_both_text_encoders_end_a_text_at_its_end(base: Checkpoint, style: Path) -> None:
    """A config's old 2 means the highest id, which a trained word now has (transformers #24773)."""
    made = added(base, style)
    for part in ("text_encoder", "text_encoder_2"):
        assert base.parts[part].config["eos_token_id"] == 2
        assert made.parts[part].config["eos_token_id"] == EOS
    assert made.text_encoders["text_encoder"].vocabulary > SIZE


def test_words_are_one_token_in_what_apps_read_and_others_are_as_before(
    base: Checkpoint, style: Path, negative: Path
) -> None:
    made = added(base, style, negative)
    files, plain = app_files(made.tokenizers), app_files(base.tokenizers)
    assert files["merges.txt"].startswith(plain["merges.txt"])
    assert files["merges.txt"].endswith("\n")
    ids = json.loads(files["vocab.json"])
    assert {t: n for t, n in ids.items() if n < SIZE} == json.loads(plain["vocab.json"])
    ranks = ranks_of(made.tokenizers["tokenizer_2"].pairs)
    before = ranks_of(base.tokenizers["tokenizer"].pairs)
    for one in made.embeddings:
        for word in one.words:
            assert pieces(word, ranks) == [f"{word}</w>"]
            assert ids[f"{word}</w>"] >= SIZE
    for word in ("horse", "lowred", "the", "moth", "tyre", "land"):
        assert pieces(word, ranks) == pieces(word, before)


def test_the_small_files_are_those_of_the_new_tokenizers(
    base: Checkpoint, style: Path, tmp_path: Path
) -> None:
    made = added(base, style)
    write_small_files(made, tmp_path / "small")
    assert read_tokenizers(tmp_path / "small", {}) == made.tokenizers
    config = json.loads((tmp_path / "small" / "text_encoder" / "config.json").read_text())
    assert config["vocab_size"] == made.tokenizers["tokenizer"].size
    with library_folder(made, "tokenizer_2") as folder:
        assert json.loads((folder / "vocab.json").read_text())["mystyle</w>"] == SIZE
    assert {*made.document_digests()} >= {"tokenizer/vocab.json", "text_encoder_2/config.json"}


def test_a_tokenizer_json_that_does_not_know_the_words_is_left_out(
    shapes: dict[str, Path], style: Path, tmp_path: Path
) -> None:
    import shutil

    from transformers import CLIPTokenizer

    folder = Path(shutil.copytree(shapes["base"], tmp_path / "copy"))
    for name in ("tokenizer", "tokenizer_2"):
        CLIPTokenizer.from_pretrained(folder / name).save_pretrained(folder / name)
    assert (folder / "tokenizer" / "tokenizer.json").exists()
    made = added(open_checkpoint(folder), style)
    assert not any(name.endswith("tokenizer.json") for name in small_files(made))


def test_keys_tell_embeddings_apart(base: Checkpoint, style: Path, negative: Path) -> None:
    def key(made: Checkpoint) -> object:
        digests = {name: str(path) for name, path in made.files.items()}
        return made.tensor_keys("text_encoder", digests)[TABLE]

    keys = [key(base), *(key(added(base, *f)) for f in ((style,), (negative,), (style, negative)))]
    assert len({json.dumps(found) for found in keys}) == 4


def test_an_embedding_inside_a_lora_is_no_longer_said_to_be_left_out(
    base: Checkpoint, tmp_path: Path
) -> None:
    name = "mid_block.attentions.0.proj_in"
    rows, columns = base.parts["unet"].tensors[f"{name}.weight"].shape[:2]
    held = {"bundle_emb.neg.clip_l": torch.ones(1, 24), "bundle_emb.neg.clip_g": torch.ones(1, 40)}
    held |= {
        f"unet.{name}.lora_A.weight": torch.ones(2, columns),
        f"unet.{name}.lora_B.weight": torch.ones(rows, 2),
    }
    save_file(held, tmp_path / "l.safetensors")
    merged, _ = with_loras(base, [Lora(tmp_path / "l.safetensors")])
    assert merged.loras[0].ignored == ("embedding `neg` inside the file",)
    made = added(merged, tmp_path / "l.safetensors", l="negx")
    assert made.loras[0].ignored == ()
    assert made.embeddings[0].words == ("negx",)
    assert made.bare is merged


def test_of_several_inside_a_file_a_token_names_one(base: Checkpoint, tmp_path: Path) -> None:
    held = {
        f"bundle_emb.{name}.{side}": torch.full((1, width), value)
        for name, value in (("one_x", 1.0), ("two_x", 2.0))
        for side, width in (("clip_l", 24), ("clip_g", 40))
    }
    save_file(held, tmp_path / "e.safetensors")
    assert [one.words for one in added(base, tmp_path / "e.safetensors").embeddings] == [
        ("onex",), ("twox",),
    ]  # fmt: skip
    made = added(base, tmp_path / "e.safetensors", e="twox")
    assert (made.parts["text_encoder"].tensors[TABLE].read(np.float32)[SIZE] == 2).all()
    with pytest.raises(InputError, match="holds 2 embeddings, and `three` is the name of none"):
        added(base, tmp_path / "e.safetensors", e="three")


def test_one_for_the_second_text_encoder_alone_is_added_and_said(
    base: Checkpoint, tmp_path: Path
) -> None:
    save_file({"clip_g": torch.ones(2, 40)}, tmp_path / "e.safetensors")
    made = added(base, tmp_path / "e.safetensors", e="onlyg")
    (one,) = made.embeddings
    assert one.text_encoders == ("text_encoder_2",)
    assert "nothing of it is for text_encoder, which reads each word as the mean" in one.line()
    table = base.parts["text_encoder"].tensors[TABLE].read(np.float32)
    ids = [base.tokenizers["tokenizer"].ids[p] for p in ("o", "n", "l", "y", "g</w>")]
    found = made.parts["text_encoder"].tensors[TABLE].read(np.float32)
    assert np.allclose(found[SIZE], table[ids].mean(axis=0), atol=1e-6)
    assert (made.parts["text_encoder_2"].tensors[TABLE].read(np.float32)[SIZE] == 1).all()


def test_a_refiner_takes_its_half(shapes: dict[str, Path], style: Path) -> None:
    made = added(open_checkpoint(shapes["refiner"]), style)
    (one,) = made.embeddings
    assert one.text_encoders == ("text_encoder_2",)
    assert "its vectors for text_encoder are not used" in one.line()


def test_rows_that_no_token_reaches_make_room(
    base: Checkpoint, style: Path, tmp_path: Path
) -> None:
    def padded(weights: dict[str, torch.Tensor]) -> None:
        table = weights["embeddings.token_embedding.weight"]
        more = torch.full((10, table.shape[1]), 9.0, dtype=table.dtype)
        weights["embeddings.token_embedding.weight"] = torch.cat([table, more])

    wide = edit_checkpoint(base, tmp_path, "text_encoder", padded, {"vocab_size": SIZE + 10})
    made = added(wide, style)
    found = made.parts["text_encoder"].tensors[TABLE].read(np.float32)
    assert not (found == 9).any()
    assert (found[SIZE : SIZE + 3] == vectors(base, 3)["text_encoder"].numpy()).all()


def other(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            {"emb_params": torch.zeros(1, 24)},
            "`other` is an embedding for Stable Diffusion 1: its vectors, 24 wide, are for CLIP-L "
            "alone, and SDXL's second text encoder would know nothing of it",
        ),
        ({"emb_params": torch.zeros(1, 1024)}, "is an embedding for Stable Diffusion 2"),
        ({"emb_params": torch.zeros(1, 300)}, "is no embedding for SDXL: its vectors are 300 wide"),
        (
            {"clip_l": torch.zeros(1, 40), "clip_g": torch.zeros(1, 40)},
            "is 40 wide, and this check",
        ),
    ],
)
def test_one_for_another_family_is_refused_by_name(
    tensors: dict[str, torch.Tensor], problem: str, base: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        added(base, other(tmp_path, **tensors))
    assert problem in caught.value.problem
    assert caught.value.where == str(tmp_path / "other.safetensors")


def test_two_embeddings_have_words_of_their_own(
    base: Checkpoint, style: Path, negative: Path
) -> None:
    with pytest.raises(InputError, match="`mystyleb` is the word of another embedding"):
        added(base, style, negative, badhands="mystyleb")
    twice = apply(base, [Embedding(style), Embedding(style)])
    assert [one.words[0] for one in twice.embeddings] == ["mystyle", "mystylex"]


def test_a_checkpoint_with_trained_tokens_is_refused(
    shapes: dict[str, Path], style: Path, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(shapes["base"], tmp_path / "copy"))
    for name in ("tokenizer", "tokenizer_2"):
        write_json(folder / name / "added_tokens.json", {"<mine>": EOS + 1})
    for name in ("text_encoder", "text_encoder_2"):
        file = folder / name / "model.safetensors"
        from safetensors.torch import load_file

        weights = load_file(file)
        (key,) = (k for k in weights if k.endswith("token_embedding.weight"))
        weights[key] = torch.cat([weights[key], weights[key][:1]])
        save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match="has trained tokens of its own"):
        added(open_checkpoint(folder), style)


def test_no_embeddings_change_nothing(base: Checkpoint) -> None:
    assert apply(base, []) is base
