"""The toy checkpoint: a small real SDXL whose prompts decide what is in the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from convert.checkpoint import open_checkpoint
from convert.errors import InputError
from convert.toy import CHECKPOINT, write_toy
from convert.toy.pictures import COLOURS, Scene, caption, draw, random_scenes

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

SCENES = [
    Scene("circle", "red", "blue", "large", "centre"),
    Scene("circle", "blue", "red", "large", "centre"),
    Scene("square", "yellow", "black", "large", "left"),
    Scene("triangle", "white", "purple", "large", "bottom"),
    Scene("star", "cyan", "green", "large", "right"),
    Scene("square", "green", "white", "small", "centre"),
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def pipeline(one_thread: None, toy: Path) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    made = StableDiffusionXLPipeline.from_pretrained(toy)
    made.set_progress_bar_config(disable=True)
    return made


def generate(
    pipeline: StableDiffusionXLPipeline,
    prompts: list[str],
    *,
    height: int = 128,
    width: int = 128,
    seed: int = 0,
) -> np.ndarray:
    """Pictures, uint8 [N, H, W, 3]."""
    made = pipeline(
        prompts,
        height=height,
        width=width,
        num_inference_steps=14,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        output_type="np",
    )
    return (made.images * 255).round().astype(np.uint8)


def seen(picture: np.ndarray) -> tuple[str, str, np.ndarray]:
    """The shape's colour, the background's, and where the shape is, bool [H, W]."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = np.median(border, axis=0)
    inside = np.linalg.norm(picture - background, axis=-1) > 60
    colour = nearest(picture[inside].mean(0)) if inside.mean() > 0.005 else "none"
    return colour, nearest(background), inside


def nearest(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - COLOURS[name])))


def shares(scenes: list[Scene], pictures: np.ndarray) -> tuple[float, float]:
    """The shares of pictures whose shape and whose background have the colour asked for."""
    found = [seen(picture)[:2] for picture in pictures]
    shape = [colour == scene.colour for scene, (colour, _) in zip(scenes, found, strict=True)]
    behind = [colour == scene.background for scene, (_, colour) in zip(scenes, found, strict=True)]
    return float(np.mean(shape)), float(np.mean(behind))


def test_prompts_decide_the_colours(pipeline: StableDiffusionXLPipeline) -> None:
    """Of eight colours each, so that one in eight would be right by chance."""
    scenes = random_scenes(16, np.random.default_rng(5))
    shape, behind = shares(scenes, generate(pipeline, [caption(scene) for scene in scenes]))
    assert shape >= 0.6
    assert behind >= 0.75


@pytest.mark.parametrize(("one", "other"), [("red", "yellow"), ("white", "purple")])
def test_swapped_words_swap_the_colours(
    pipeline: StableDiffusionXLPipeline, one: str, other: str
) -> None:
    scenes = [
        Scene("triangle", one, other, "large", "centre"),
        Scene("triangle", other, one, "large", "centre"),
    ]
    made = generate(pipeline, [caption(scene) for scene in scenes])
    assert [seen(picture)[:2] for picture in made] == [(one, other), (other, one)]


@pytest.mark.parametrize(("height", "width"), [(128, 192), (192, 128)])
def test_it_draws_at_other_aspect_ratios(
    pipeline: StableDiffusionXLPipeline, height: int, width: int
) -> None:
    prompts = [caption(scene) for scene in SCENES]
    made = generate(pipeline, prompts, height=height, width=width)
    assert made.shape == (len(SCENES), height, width, 3)
    # The shape's colour is right in less than half of them, so only the background is held to.
    assert shares(SCENES, made)[1] >= 0.75


def test_the_latents_have_the_spread_that_apps_assume(pipeline: StableDiffusionXLPipeline) -> None:
    pictures = draw(SCENES, 128, 128).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(torch.from_numpy(pictures)).latent_dist.mean
    assert pipeline.vae.config.scaling_factor == 0.13025
    assert float(latents.std() * 0.13025) == pytest.approx(1, abs=0.3)


def test_a_toy_is_a_copy(toy: Path) -> None:
    assert files(toy) == files(CHECKPOINT)


def test_it_is_small() -> None:
    assert sum(map(len, files(CHECKPOINT).values())) <= 10_000_000


def test_it_opens_with_every_component(toy: Path) -> None:
    checkpoint = open_checkpoint(toy)
    assert checkpoint.components == (
        "text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder",
    )  # fmt: skip
    assert set(checkpoint.tokenizers) == {"tokenizer", "tokenizer_2"}
    dtypes = {t.dtype for part in checkpoint.parts.values() for t in part.tensors.values()}
    assert dtypes == {"F16"}


def test_its_tokenizer_is_clips(toy: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(toy / "tokenizer")
    vocab = json.loads((toy / "tokenizer" / "vocab.json").read_text("utf-8"))
    assert vocab["!"] == 0  # Apple's Swift package pads with it
    assert (toy / "tokenizer" / "merges.txt").read_text("utf-8").endswith("\n")
    ids = tokenizer("a large red circle").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>", "a</w>", "large</w>", "red</w>", "circle</w>", "<|endoftext|>",
    ]  # fmt: skip
    unknown = tokenizer("zebra café 😀", padding="max_length").input_ids
    assert len(unknown) == 77
    assert max(unknown) < len(vocab)
    second = CLIPTokenizer.from_pretrained(toy / "tokenizer_2")
    assert second("red", padding="max_length").input_ids[-1] == 0


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        write_toy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
