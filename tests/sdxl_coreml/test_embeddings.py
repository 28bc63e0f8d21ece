"""Embeddings on the command line: planned, added, said, verified, drawn with; refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.prepare import prepare
from convert.process.progress import Silent
from convert.recipe.builtin import read_recipe
from convert.run.run import run
from convert.values import Resolution
from tests.support.embeddings import vectors, write_embedding
from verify.reference.reference import quiet
from verify.sampling.noise import Noise
from verify.sampling.pipeline import load_pipeline
from verify.sampling.sampling import Settings, sample
from verify.sampling.schedulers import make_scheduler

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
WORDS = "badhandz badhandzb"
SIZE = Resolution(64, 64)


@pytest.fixture(scope="module")
def folder(shapes: Mapping[str, Path]) -> Path:
    return shapes["base"]


@pytest.fixture(scope="module")
def files(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A negative embedding of two vectors, and a style of one, stronger than ordinary tokens."""
    place = tmp_path_factory.mktemp("embeddings")
    found = {"BadHands_v2": vectors(base, 2, seed=1), "style": vectors(base, 1, seed=2)}
    return [
        write_embedding(place / f"{name}.safetensors", {n: 3 * v for n, v in values.items()})
        for name, values in found.items()
    ]


@pytest.fixture(scope="module")
def options(files: list[Path]) -> list[str]:
    return ["--embedding", f"{files[0]}=badhandz", "--embedding", f"{files[1]}=mystyle"]


@pytest.fixture(scope="module")
def recipe(folder: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people write: the negative embedding in the negative prompt; the style in no prompt."""
    text = f"""
    name = "mine"
    [source]
    path = "{folder}"
    embeddings = [
        {{ path = "{files[0]}", token = "badhandz" }},
        {{ path = "{files[1]}", token = "mystyle" }},
    ]
    [matrix]
    attention = ["original"]
    resolution = ["64x64"]
    [verify]
    prompts = ["the horse"]
    negative_prompt = "{WORDS} a beach"
    steps = 3
    """
    file = tmp_path_factory.mktemp("recipe") / "r.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def artifact(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = prepare(read_recipe(str(recipe)), None, Silent())
    return run(prepared.plan, prepared.snapshot, tmp_path_factory.mktemp("out"))[0].path


def test_plan_and_inspect_say_how_to_write_them(
    command: Run, recipe: Path, folder: Path, files: list[Path], options: list[str]
) -> None:
    code, out, _ = command("plan", recipe)
    assert code == 0
    assert (
        "embedding BadHands_v2, 2 vectors of text_encoder and text_encoder_2; write it between "
        f"spaces: {WORDS}" in out
    )
    assert f"the embedding BadHands_v2 is written `{WORDS}` in prompts" in out
    _, out, _ = command("plan", recipe, "--json")
    document = json.loads(out)
    assert [one["words"] for one in document["embeddings"]] == [WORDS.split(), ["mystyle"]]
    assert [n["topic"] for n in document["notices"]].count("embeddings") == 2
    code, out, _ = command("inspect", folder, *options)
    assert (code, out.count("write it between spaces")) == (0, 2)
    code, out, _ = command("inspect", files[0])
    assert (code, out.partition(";")[0]) == (0, "embedding `BadHands_v2` for SDXL: 2 vectors")
    _, out, _ = command("inspect", files[0], "--json")
    assert json.loads(out)["embeddings"][0]["text_encoders"]["text_encoder"] == [2, 24]


def test_the_manifest_names_them_with_digests_and_words(
    command: Run, artifact: Path, files: list[Path]
) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    found = manifest["source"]["embeddings"]
    assert [one["words"] for one in found] == [WORDS.split(), ["mystyle"]]
    for one, file in zip(found, files, strict=True):
        ((name, digest),) = one["files"].items()
        assert name == f"embeddings/{file.name}"
        assert digest == manifest["source"]["files"][name]
    _, out, _ = command("inspect", artifact)
    assert f"embedding, written between spaces: {WORDS}\n" in out
    assert "added_tokens" not in manifest["pipeline"]  # they are in the vocabulary itself


def test_what_is_converted_with_them_is_verified_with_them(
    command: Run, recipe: Path, artifact: Path, folder: Path, options: list[str], tmp_path: Path
) -> None:
    """A whole generation, and each embedding's own case, against diffusers' loading of them."""
    levels = [w for level in ("structure", "conversion", "generation") for w in ("--level", level)]
    short = ["--timestep", "999", "--recipe", recipe]
    given = ["verify", artifact, "--source", folder, *options, *levels, *short]
    code, out, _ = command(*given, "--json", tmp_path / "r.json")
    assert code == 0, out
    document = json.loads((tmp_path / "r.json").read_text())
    assert "the reference has its embeddings added by diffusers" in document["scope"]
    cases = {(c["component"], c["case"]) for c in document["checks"] if c["level"] == "conversion"}
    for word in ("badhandz", "mystyle"):
        for encoder in ("text_encoder", "text_encoder_2"):
            assert (encoder, f"embedding {word}") in cases
    prompts = {g["prompt"] for g in document["generations"]}
    assert prompts == {"mystyle the horse"}  # that of no prompt begins the first
    code, out, _ = command("verify", artifact, "--source", folder, "--level", "structure")
    assert code == 1
    assert "vocab.json is not the checkpoint's" in out


def settings(prompt: str) -> Settings:
    negative = f"{WORDS} a beach"
    return Settings("text-to-image", prompt, negative, "euler", steps=3, guidance=5.0, seed=3)


def library_picture(folder: Path, files: list[Path]) -> np.ndarray:
    """The picture of diffusers' own pipeline, with its own tokens and loader."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    with quiet():
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder,
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            scheduler=make_scheduler("euler", open_checkpoint(folder).scheduler),
            add_watermarker=False,
        ).to(dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        for name, file in zip(("<bad>", "<style>"), files, strict=True):
            held = load_file(file)
            for key, encoder, tokenizer in (
                ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
                ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
            ):
                pipeline.load_textual_inversion(
                    held[key], token=name, text_encoder=encoder, tokenizer=tokenizer
                )
                for module in encoder.modules():  # transformers #24773: or it pools at a vector
                    if hasattr(module, "eos_token_id"):
                        module.eos_token_id = tokenizer.eos_token_id
        asked = Settings(
            "text-to-image", "<style> the horse", "<bad> a beach", "euler", 3, 5.0, seed=3
        )
        return sample(pipeline, asked, SIZE, Noise(3)).image


def test_pictures_are_those_of_diffusers_with_its_own_loading(
    artifact: Path, folder: Path, files: list[Path]
) -> None:
    pipeline = load_pipeline(artifact, runtime="torch", scheduler="euler")
    found = sample(pipeline, settings("mystyle the horse"), SIZE, Noise(3)).image
    wanted = library_picture(folder, files)
    without = sample(pipeline, settings("the horse"), SIZE, Noise(3)).image
    error = np.abs(found - wanted).max()
    assert error < 0.02  # of 1: float16 inside, as without embeddings
    assert np.abs(found - without).max() > 5 * error


def test_generate_draws_with_their_words(command: Run, artifact: Path, tmp_path: Path) -> None:
    pictures = []
    for number, prompt in enumerate(("the horse", "mystyle, the horse")):
        file = tmp_path / f"{number}.png"
        given = ["--steps", "1", "--negative", WORDS, "--out", file, "--runtime", "torch"]
        code, _, _ = command("generate", artifact, prompt, *given)
        assert code == 0
        pictures.append(np.asarray(Image.open(file), np.int16))
    assert np.abs(pictures[1] - pictures[0]).max() > 4  # a comma is no hindrance here


def test_compressed_text_encoders_have_their_rows(
    command: Run, folder: Path, options: list[str], tmp_path: Path
) -> None:
    parts = ["--component", "text_encoder", "--component", "text_encoder_2"]
    given = ["--resolution", "64x64", "--bits", "6", "--bits", "int8", "--out", tmp_path / "out"]
    code, _, _ = command("convert", folder, *options, *parts, *given)
    assert code == 0
    for path in sorted((tmp_path / "out").glob("base_*")):
        code, out, _ = command("verify", path, "--source", folder, *options, *parts)
        assert code == 0, out


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{style}=MyStyle", "`MyStyle` has more than the letters a to z"),
        ("{style}=my2", "`my2` has more than the letters a to z"),
        ("{style}=horse", "`horse` is a word of CLIP's vocabulary already"),
        ("{sd1}", "is an embedding for Stable Diffusion 1: its vectors, 24 wide, are for CLIP-L"),
        ("{sd2}", "is an embedding for Stable Diffusion 2"),
        ("{lora}", "is a LoRA without an embedding inside, not an embedding"),
        ("nothing.safetensors", "no such"),
    ],
)
def test_what_cannot_be_added_is_one_sentence_and_leaves_nothing(
    given: str, problem: str, command: Run, folder: Path, files: list[Path], tmp_path: Path
) -> None:
    made = {
        "sd1": {"emb_params": torch.zeros(2, 24)},
        "sd2": {"string_to_param.*": torch.zeros(2, 1024)},
        "lora": {f"x.lora_{n}.weight": torch.zeros(1, 1) for n in ("up", "down")},
    }
    places = {"style": files[1]}
    for name, tensors in made.items():
        places[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, places[name])
    option = given.format(**places)
    code, out, err = command("convert", folder, "--embedding", option, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert problem in err
    assert not (tmp_path / "out").exists()


def test_an_embedding_is_no_lora_and_no_checkpoint(
    command: Run, folder: Path, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = command("convert", folder, "--lora", files[0], "--out", out)
    assert (code, "is an embedding (textual inversion), not a LoRA" in err) == (2, True)
    code, _, err = command("convert", files[0], "--out", out)
    assert (code, "embedding" in err) == (2, True)


def test_a_recipe_s_relative_embedding_lies_beside_it(
    command: Run, recipe: Path, files: list[Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copy(files[1], tmp_path)
    text = recipe.read_text().replace(str(files[1]), files[1].name)
    (tmp_path / "r.toml").write_text(text)
    code, out, _ = command("plan", tmp_path / "r.toml", "--json")
    assert code == 0
    assert json.loads(out)["embeddings"][1]["words"] == ["mystyle"]


def test_what_a_recipe_says_of_them_is_checked(command: Run, recipe: Path, tmp_path: Path) -> None:
    def errors(embeddings: str) -> Any:
        text = f'name = "x"\n[source]\npath = "x"\nembeddings = {embeddings}\n'
        (tmp_path / "r.toml").write_text(text)
        code, _, err = command("plan", tmp_path / "r.toml")
        assert code == 2
        return err

    assert "source.embeddings[0]: needs exactly one of path, repo, url" in errors("[{}]")
    assert "source.embeddings[0].scale: unknown key" in errors('[{ path = "x", scale = 1.0 }]')
    assert "source.embeddings[0].token: must be a string" in errors('[{ path = "x", token = 1 }]')
