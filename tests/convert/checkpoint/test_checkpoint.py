"""Opening a checkpoint: every spelling that the Hub has is read, everything else is one error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe

RECIPE = parse_recipe('name = "t"\n[source]\npath = "t"\n', where="test")


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "ck"))


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON object or the tensors of a safetensors file in place."""
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        file.write_text(json.dumps(change(value) or value))
    else:
        tensors = load_file(file)
        save_file(change(tensors) or tensors, file)


def rename_vae_attention(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    out = {}
    for key, value in tensors.items():
        for new, name in old.items():
            if f"attentions.0.{new}." in key:
                key = key.replace(new, name)
                value = value[..., None, None] if value.ndim == 2 else value
        out[key] = value.contiguous()
    return out


def test_old_and_new_spellings_give_the_same_tensors(toy: Path, copy: Path) -> None:
    text = weights(copy / "text_encoder")
    edit(text, lambda t: {k.removeprefix("text_model."): v for k, v in t.items()})
    second = weights(copy / "text_encoder_2")
    edit(second, lambda t: {**t, "text_model.embeddings.position_ids": torch.arange(77)[None]})
    edit(weights(copy / "vae"), rename_vae_attention)
    one, other = open_checkpoint(toy), open_checkpoint(copy)
    for name, part in one.parts.items():
        assert part.tensors.keys() == other.parts[name].tensors.keys()
        for key, tensor in part.tensors.items():
            same = other.parts[name].tensors[key]
            assert same.shape == tensor.shape
            np.testing.assert_array_equal(same.read(np.float32), tensor.read(np.float32))


def shard(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> None:
    """Save a folder's weights in two shards; `change` alters what is saved after the index."""
    single = weights(folder)
    tensors = load_file(single)
    stem = single.name.removesuffix(".safetensors")
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    index = {"metadata": {}, "weight_map": weight_map}
    parts = {n: {k: v for k, v in tensors.items() if weight_map[k] == n} for n in names}
    change({"index": weight_map, **{str(i): parts[name] for i, name in enumerate(names, 1)}})
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    for name, part in parts.items():
        save_file(part, folder / name)
    single.unlink()


def test_shards_are_read_as_one_file(toy: Path, copy: Path) -> None:
    shard(copy / "unet")
    ours, expected = open_checkpoint(copy).parts["unet"], open_checkpoint(toy).parts["unet"]
    assert ours.tensors.keys() == expected.tensors.keys()
    key = "mid_block.resnets.0.conv1.weight"
    np.testing.assert_array_equal(
        ours.tensors[key].read(np.float16), expected.tensors[key].read(np.float16)
    )


def move(shards: dict[str, Any]) -> None:
    key = next(iter(shards["1"]))
    shards["2"][key] = shards["1"].pop(key)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (move, r"1-of-00002.*: lacks tensor `.*index\.json places there"),
        (lambda s: s["1"].pop("conv_out.bias"), "1-of-00002.*: lacks tensor `conv_out.bias`"),
        (lambda s: s["2"].update(x=torch.ones(1)), "`x`, which .*index.json does not name"),
        (lambda s: s["index"].pop("conv_out.bias"), "conv_out.bias`, which .* does not name"),
        (
            lambda s: s["2"].update({"conv_out.bias": torch.ones(4)}),
            "2-of-00002.*: holds tensor `conv_out.bias`, which .* places in .*1-of-00002",
        ),
    ],
)
def test_an_index_and_shards_of_two_saves_are_one_error(
    change: Callable[[dict[str, Any]], Any], problem: str, copy: Path
) -> None:
    shard(copy / "unet", change)
    with pytest.raises(InputError, match=problem) as error:
        open_checkpoint(copy)
    assert "of two saves" in str(error.value.hint)


def test_vocabulary_and_merges_follow_from_tokenizer_json(toy: Path, copy: Path) -> None:
    expected = open_checkpoint(toy).tokenizers["tokenizer"]
    vocab = json.loads(expected.vocab)
    merges = expected.merges.splitlines()[1:]
    for old in ("vocab.json", "merges.txt"):
        (copy / "tokenizer" / old).unlink()
    model = {"type": "BPE", "vocab": vocab, "merges": [m.split(" ") for m in merges]}
    (copy / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    found = open_checkpoint(copy).tokenizers["tokenizer"]
    assert json.loads(found.vocab) == vocab
    assert found.merges == expected.merges


def test_merges_end_in_a_newline(copy: Path) -> None:
    file = copy / "tokenizer" / "merges.txt"
    file.write_text(file.read_text().rstrip("\n"))
    assert open_checkpoint(copy).tokenizers["tokenizer"].merges.endswith("\n")


def set_class(name: str) -> Callable[[Path], None]:
    return lambda ck: edit(ck / "model_index.json", lambda v: {**v, "_class_name": name})


def set_config(part: str, **changes: Any) -> Callable[[Path], None]:
    return lambda ck: edit(ck / part / "config.json", lambda v: {**v, **changes})


def truncate(part: str) -> Callable[[Path], None]:
    def change(ck: Path) -> None:
        file = weights(ck / part)
        file.write_bytes(file.read_bytes()[:-1000])

    return change


def corrupt(part: str) -> Callable[[Path], None]:
    return lambda ck: weights(ck / part).write_bytes(b"<html>Not found</html>" * 50) and None


def drop(part: str) -> Callable[[Path], None]:
    return lambda ck: shutil.rmtree(ck / part)


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("SD 1.5", set_class("StableDiffusionPipeline"), "Stable Diffusion 1 or 2 checkpoint"),
    ("SD3", set_class("StableDiffusion3Pipeline"), "Stable Diffusion 3 checkpoint"),
    ("Flux", set_class("FluxPipeline"), "Flux checkpoint"),
    ("SD 2 UNet", set_config("unet", addition_embed_type=None), "`addition_embed_type` is null"),
    ("no index", lambda ck: (ck / "model_index.json").unlink(), "no model_index.json"),
    ("no unet", drop("unet"), "unet"),
    ("no vae", drop("vae"), "vae"),
    ("no text encoder 2", drop("text_encoder_2"), "text_encoder_2"),
    ("no config", lambda ck: (ck / "unet" / "config.json").unlink(), "config.json: missing"),
    ("bad JSON", lambda ck: (ck / "vae" / "config.json").write_text("{"), "not readable as JSON"),
    ("truncated", truncate("unet"), "truncated"),
    ("corrupt", corrupt("vae"), "vae.* is a web page, no file of weights"),
    ("no weights", lambda ck: weights(ck / "unet").unlink(), "unet.* no complete weights"),
    (
        "unknown block",
        set_config("unet", down_block_types=["DownBlock2D", "CrossAttnDownBlok2D", "DownBlock2D"]),
        r'`down_block_types\[1\]` is "CrossAttnDownBlok2D", .*did you mean "CrossAttnDownBlock2D"',
    ),
    ("class embedding", set_config("unet", class_embed_type="timestep"), "`class_embed_type`"),
    ("unknown switch", set_config("unet", magic=True), "`magic` is true, a setting"),
    ("time ids", set_config("unet", projection_class_embeddings_input_dim=165), "6 or, for a ref"),
    ("heads", set_config("unet", attention_head_dim=[3, 4, 8]), "heads that divide the width 32"),
    ("blocks", set_config("vae", block_out_channels=[32, 32, 64]), "4 down blocks.* 3 widths"),
]


@pytest.mark.parametrize(("change", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_is_not_a_whole_sdxl_checkpoint_is_one_error(
    copy: Path, change: Callable[[Path], Any], says: str
) -> None:
    change(copy)
    with pytest.raises(InputError, match=says) as caught:
        make_plan(RECIPE, open_checkpoint(copy))
    assert caught.value.hint or caught.value.where


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_checkpoint(tmp_path / "none")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(InputError, match="is empty"):
        open_checkpoint(file)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard(copy / "unet")
    gone = sorted((copy / "unet").glob("*-of-*"))[0]
    gone.unlink()
    with pytest.raises(InputError, match=f"ck: unet/.*index.json names the shard unet/{gone.name}"):
        open_checkpoint(copy)


def test_another_file_that_transformers_is_told_to_load_is_not_overlooked(copy: Path) -> None:
    edit(
        copy / "text_encoder/config.json",
        lambda v: {**v, "transformers_weights": "ema.safetensors"},
    )
    with pytest.raises(InputError, match=r'`transformers_weights` is the text "ema.safetensors"'):
        open_checkpoint(copy)
    name = weights(copy / "text_encoder").name
    edit(copy / "text_encoder/config.json", lambda v: {**v, "transformers_weights": name})
    assert open_checkpoint(copy).parts["text_encoder"].tensors


@pytest.mark.parametrize(
    ("mark", "means"),
    [("v_pred", "v-prediction"), ("ztsnr", "zero terminal SNR"), ("edm_mean", "EDM")],
)
@pytest.mark.parametrize("shape", [(0,), ()])
def test_a_mark_among_the_weights_is_called_that(
    mark: str, means: str, shape: tuple[int, ...], copy: Path
) -> None:
    edit(weights(copy / "unet"), lambda t: {**t, mark: torch.zeros(shape)})
    with pytest.raises(InputError, match=f"tensor `{mark}` is a mark, no weight.*{means}") as error:
        make_plan(RECIPE, open_checkpoint(copy))
    assert "scheduler_config.json" in error.value.problem
    assert error.value.hint


@pytest.mark.parametrize(
    "harmless",
    [
        {"only_cross_attention": [False, False, False]},
        {"mid_block_only_cross_attention": False, "class_embeddings_concat": False},
        {"dual_cross_attention": [False] * 3, "num_class_embeds": None},
        {"cross_attention_dim": [64] * 3, "attention_head_dim": [1, 2, 4]},
    ],
)
def test_settings_that_change_nothing_build(
    harmless: dict[str, Any], base: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(base.path, tmp_path / "ck"))
    edit(copy / "unet/config.json", lambda v: {**v, **harmless})
    assert make_plan(RECIPE, open_checkpoint(copy)).artifacts


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_git_lfs_did_not_fetch_are_called_that(part: str, copy: Path) -> None:
    weights(copy / part).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 167335342\n"
    )
    with pytest.raises(InputError, match="is a Git LFS pointer") as error:
        open_checkpoint(copy)
    assert error.value.where == str(weights(copy / part))
    assert "git lfs pull" in str(error.value.hint)
