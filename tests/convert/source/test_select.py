"""Which files are the weights: those that diffusers and transformers load, or an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from convert.source.select import WeightFiles, select_files, select_vae, weight_files
from verify.reference.reference import quiet

Form = Literal["safetensors", "bin"]
STEMS: dict[Form, dict[str, str]] = {
    "safetensors": {"vae": "diffusion_pytorch_model", "text_encoder_2": "model"},
    "bin": {"vae": "diffusion_pytorch_model", "text_encoder_2": "pytorch_model"},
}
# Stem and suffix → one file, or an index and its shards.
SETS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    "single": lambda s, x: (f"{s}.{x}",),
    "shards": lambda s, x: (f"{s}.{x}.index.json", *shards(s, x)),
    "fp16 single": lambda s, x: (f"{s}.fp16.{x}",),
    "fp16 shards": lambda s, x: (f"{s}.{x}.index.fp16.json", *shards(f"{s}.fp16", x)),
    "fp16 shards, old": lambda s, x: (f"{s}.{x}.fp16.index.json", *shards(s, f"fp16.{x}")),
}
SUBSETS = [set_ for size in range(1, 6) for set_ in combinations(SETS, size)]


def shards(start: str, end: str) -> tuple[str, ...]:
    return tuple(f"{start}-{i:05}-of-00002.{end}" for i in (1, 2))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder for each library with all sets of one small network; each is of one number."""
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, projection_dim=2,
    )  # fmt: skip
    models = {"vae": vae, "text_encoder_2": CLIPTextModelWithProjection(config)}
    root = tmp_path_factory.mktemp("stores")
    for part, model in models.items():
        folder = root / part
        with quiet():
            model.save_pretrained(folder)
        names = load_file(folder / f"{STEMS['safetensors'][part]}.safetensors")
        number = 0
        for form, stems in STEMS.items():
            for sets in SETS.values():
                number += 1
                tensors = {k: torch.full_like(v, number) for k, v in names.items()}
                write_set(folder, sets(stems[part], form), tensors)
    return {part: root / part for part in models}


def write_set(folder: Path, files: tuple[str, ...], tensors: Mapping[str, torch.Tensor]) -> None:
    if len(files) == 1:
        write_tensors(dict(tensors), folder / files[0])
        return
    index, *places = files
    weight_map = {key: places[i % 2] for i, key in enumerate(sorted(tensors))}
    for place in places:
        part = {k: v for k, v in tensors.items() if weight_map[k] == place}
        write_tensors(part, folder / place)
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / index).write_text(text)


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, {"format": "pt"})


def load(part: str, folder: Path, variant: str | None, form: Form) -> float | None:
    """The number that the library loads, or None."""
    kind: Any = AutoencoderKL if part == "vae" else CLIPTextModelWithProjection
    is_safe = form == "safetensors"
    try:
        with quiet():
            model = kind.from_pretrained(folder, variant=variant, use_safetensors=is_safe)
    except (OSError, ValueError):
        return None
    return float(next(model.parameters()).detach().flatten()[0])


@pytest.mark.parametrize("form", STEMS)
@pytest.mark.parametrize("part", STEMS["bin"])
def test_the_choice_is_that_of_the_library_for_every_mixture_of_sets(
    part: str,
    form: Form,
    stores: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every subset of five sets; diffusers finds old indexes by the dots of the whole path."""
    monkeypatch.chdir(tmp_path)
    kept = set()
    for number, chosen in enumerate(SUBSETS):
        folder = Path(f"{number}")
        folder.mkdir()
        names = ["config.json", *(f for s in chosen for f in SETS[s](STEMS[form][part], form))]
        for name in names:
            (folder / name).hardlink_to(stores[part] / name)
        listing = [f"{part}/{name}" for name in names]

        def read(name: str, folder: Path = folder) -> bytes:
            return (folder / name.rpartition("/")[2]).read_bytes()

        loaded = {variant: load(part, folder, variant, form) for variant in ("fp16", None)}
        try:
            ours = weight_files(listing, part, read)
        except InputError:
            assert set(loaded.values()) == {None}, chosen
            continue
        tensors = read_weights(folder / ours.files[0].rpartition("/")[2]).tensors
        first = next(iter(tensors.values())).read(np.float32).flatten()[0]
        assert first == loaded[ours.variant]
        assert ours.variant == ("fp16" if loaded["fp16"] else None)
        kept.add(ours.files)
    assert len(kept) == (5 if part == "vae" else 4)  # transformers never read the old spelling


@pytest.mark.parametrize("one", SETS)
@pytest.mark.parametrize("other", SETS)
@pytest.mark.parametrize("part", STEMS["bin"])
def test_safetensors_go_before_pickles_of_any_variant(
    one: str, other: str, part: str, stores: Mapping[str, Path]
) -> None:
    if part != "vae" and "old" in one + other:
        return  # transformers never read the old spelling
    safe = SETS[one](STEMS["safetensors"][part], "safetensors")
    names = [f"{part}/{n}" for n in (*safe, *SETS[other](STEMS["bin"][part], "bin"))]
    found = weight_files(names, part, lambda name: (stores[part].parent / name).read_bytes())
    assert set(found.files) == {f"{part}/{n}" for n in safe if n.endswith(".safetensors")}


S = "unet/diffusion_pytorch_model"
INDEX = f"{S}.safetensors.index.json"
GOOD = {"metadata": {}, "weight_map": {"a": f"{S[5:]}-00001-of-00001.safetensors"}}
SHARD = f"{S}-00001-of-00001.safetensors"


def choose(names: list[str], index: Any = GOOD, part: str = "unet") -> WeightFiles:
    content = index if isinstance(index, bytes) else json.dumps(index).encode()
    return weight_files(names, part, lambda name: content)


def mapped(shard: Any) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {"a": shard}}


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (b"{", "not readable as JSON"),
        ([], "a list where an object"),
        ({"weight_map": {}}, "`metadata` is missing"),
        ({"metadata": 1, "weight_map": {}}, "`metadata` is the number 1"),
        ({"metadata": {}}, "`weight_map` is missing"),
        ({"metadata": {}, "weight_map": []}, "`weight_map` is a list"),
        ({"metadata": {}, "weight_map": {}}, "names no tensor"),
        *((mapped(s), 'gives tensor "a" to') for s in ("../x.safetensors", "/x.safetensors", "")),
        *((mapped(s), 'gives tensor "a" to') for s in ("b/x.safetensors", "..", 3, None, "x.bin")),
        (mapped("other.safetensors"), r"names the shard unet/other\.safetensors, which is not"),
    ],
)
def test_a_damaged_index_is_named(index: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        choose([INDEX, SHARD], index)
    assert error.value.problem.startswith(INDEX)
    assert error.value.hint


def test_an_index_that_lost_its_shards_names_the_file_beside_it() -> None:
    with pytest.raises(InputError, match="names the shard") as error:
        choose([INDEX, f"{S}.safetensors"])
    assert f"if {S}.safetensors holds the weights, delete the index" in str(error.value.hint)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (
            [SHARD],
            "found by their index, which is called diffusion_pytorch_model.safetensors.index",
        ),
        ([SHARD, f"{S}.fp16.safetensors.index.json"], "found by their index"),  # nobody reads it
        ([f"{S}.SAFETENSORS"], "load diffusion_pytorch_model.safetensors or"),
        (["UNet/diffusion_pytorch_model.safetensors"], "load diffusion_pytorch_model.safetensors"),
        (["unet/model.safetensors"], "load diffusion_pytorch_model.safetensors or"),
        (["unet/pytorch_model.bin"], "diffusion_pytorch_model.bin where there is neither"),
        ([f"{S}-00001-of-00002.bin"], "diffusion_pytorch_model.bin.index.json for .bin"),
        ([f"{S}.msgpack"], "save_pretrained"),
        (["vae/diffusion_pytorch_model.safetensors"], "SDXL has unet/"),
    ],
)
def test_what_lies_there_instead_of_weights_is_told(names: list[str], hint: str) -> None:
    with pytest.raises(InputError, match=r"unet/ has no complete weights") as error:
        choose(names)
    assert hint in str(error.value.hint)
    assert names[0].removeprefix("unet/") in error.value.problem or "SDXL has" in hint


def test_safetensors_go_before_bin() -> None:
    both = [f"{S}.bin", f"{S}.bin.index.json", f"{S}.safetensors"]
    assert choose(both).files == (f"{S}.safetensors",)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (  # as madebyollin/sdxl-vae-fp16-fix: the same thing three times
            ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors",
             "sdxl.vae.safetensors", "sdxl_vae.safetensors", "README.md", "images/orig.png"],
            ["README.md", "config.json", "diffusion_pytorch_model.safetensors"],
        ),
        (
            ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
             "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "sdxl.safetensors"],
            ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"],
        ),
        (["vae/config.json", "vae/diffusion_pytorch_model.bin"],
         ["vae/config.json", "vae/diffusion_pytorch_model.bin"]),
        (["sdxl_vae.safetensors", "LICENSE"], ["sdxl_vae.safetensors", "LICENSE"]),
    ],
)  # fmt: skip
def test_of_a_repo_only_its_vae_is_taken(names: list[str], chosen: list[str]) -> None:
    assert select_vae(names, lambda _: b"") == chosen


def test_a_vae_that_is_not_there_or_there_twice_is_told() -> None:
    for names, problem in (
        (["a.safetensors", "b.ckpt"], "2 single files here"),
        (["README.md"], "no VAE here"),
        (["model_index.json", "unet/config.json"], "vae/ has no complete weights"),
    ):
        with pytest.raises(InputError, match=problem):
            select_vae(names, lambda _: b"")


def test_a_checkpoint_that_gets_another_vae_is_taken_without_its_own() -> None:
    names = [f"{folder}/config.json" for folder in ("unet", "vae", "text_encoder_2")]
    names += ["model_index.json", "unet/diffusion_pytorch_model.safetensors"]
    names += ["text_encoder_2/model.safetensors"]
    names += ["tokenizer_2/vocab.json", "tokenizer_2/merges.txt"]
    with pytest.raises(InputError, match="vae/ has no complete weights"):
        select_files(names, lambda _: b"")
    chosen = select_files(names, lambda _: b"", without=["vae"])
    assert sorted(set(names) - set(chosen)) == ["vae/config.json"]
