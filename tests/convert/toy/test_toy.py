"""The toy checkpoint: a small real SDXL whose prompts decide what is in the picture."""

from __future__ import annotations

import json
from dataclasses import astuple, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.toy import CHECKPOINT, write_toy
from convert.toy.drawings import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    draw,
    random_scenes,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def pipeline(one_thread: None, toy: Path) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    made = StableDiffusionXLPipeline.from_pretrained(toy)
    made.set_progress_bar_config(disable=True)
    return made


def generate(
    pipeline: StableDiffusionXLPipeline, prompts: list[str], *, height: int = 128, width: int = 128
) -> np.ndarray:
    """Pictures, uint8 [N, H, W, 3]."""
    made = pipeline(
        prompts,
        height=height,
        width=width,
        num_inference_steps=14,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        output_type="np",
    )
    return (made.images * 255).round().astype(np.uint8)


def seen(picture: np.ndarray) -> Scene:
    """What a picture shows: colours by the nearest, the rest by the drawing it overlaps most."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = np.median(border, axis=0)
    inside = np.linalg.norm(picture - background, axis=-1) > 60  # [H, W]
    if inside.mean() < 0.005:
        return Scene("none", "none", nearest(background), "none", "none")
    possible, masks = drawings(*inside.shape)
    overlap = (masks & inside).sum((1, 2)) / (masks | inside).sum((1, 2))
    found = possible[int(overlap.argmax())]
    colour = nearest(np.median(picture[inside], axis=0))
    return Scene(found.shape, colour, nearest(background), found.size, found.position)


@cache
def drawings(height: int, width: int) -> tuple[list[Scene], np.ndarray]:
    """Every shape of every size in every place, and where each is, bool [N, H, W]."""
    scenes = [
        Scene(shape, "white", "black", size, position)
        for shape, size, position in product(SHAPES, SIZES, POSITIONS)
    ]
    return scenes, draw(scenes, height, width)[..., 0] > 128


def nearest(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - COLOURS[name])))


def shares(scenes: list[Scene], pictures: np.ndarray) -> dict[str, float]:
    """The share of pictures that show what was asked for, by field."""
    found = np.array([astuple(seen(picture)) for picture in pictures])
    right = (found == np.array([astuple(scene) for scene in scenes])).mean(0)
    return {field.name: float(r) for field, r in zip(fields(Scene), right, strict=True)}


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 192), (192, 128)])
def test_prompts_decide_what_is_drawn(
    pipeline: StableDiffusionXLPipeline, height: int, width: int
) -> None:
    """By chance: one colour in eight, one shape and one place in five, one size in two."""
    scenes = random_scenes(16, np.random.default_rng(5))
    prompts = [caption(scene) for scene in scenes]
    made = generate(pipeline, prompts, height=height, width=width)
    assert made.shape == (len(scenes), height, width, 3)
    right = shares(scenes, made)
    assert min(right.values()) >= 0.9, right


def test_drawings_are_recognised() -> None:
    """What judges the pictures, on perfect ones."""
    scenes = random_scenes(40, np.random.default_rng(6))
    for height, width in ((128, 128), (128, 192), (192, 128)):
        assert [seen(picture) for picture in draw(scenes, height, width)] == scenes


@pytest.mark.parametrize(
    ("one", "other"), [("red", "yellow"), ("white", "purple"), ("green", "black")]
)
def test_swapped_words_swap_the_colours(
    pipeline: StableDiffusionXLPipeline, one: str, other: str
) -> None:
    scenes = [
        Scene("circle", one, other, "large", "centre"),
        Scene("circle", other, one, "large", "centre"),
    ]
    assert [seen(p) for p in generate(pipeline, [caption(s) for s in scenes])] == scenes


def test_the_latents_have_the_spread_that_apps_assume(pipeline: StableDiffusionXLPipeline) -> None:
    scenes = random_scenes(16, np.random.default_rng(7))
    pictures = draw(scenes, 128, 128).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
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
