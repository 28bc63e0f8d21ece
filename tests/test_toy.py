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
from convert.toy.pictures import COLOURS, POSITIONS, SHAPES, SIZES, Scene, caption, draw

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
    assert inside.mean() > 0.01, "nothing but background"
    return nearest(picture[inside].mean(0)), nearest(background), inside


def nearest(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - COLOURS[name])))


def check(scenes: list[Scene], pictures: np.ndarray) -> None:
    for scene, picture in zip(scenes, pictures, strict=True):
        colour, background, inside = seen(picture)
        assert (colour, background) == (scene.colour, scene.background), scene
        height, width = inside.shape
        rows, columns = np.nonzero(inside)
        centre = ((columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height)
        assert centre == pytest.approx(POSITIONS[scene.position], abs=0.08), scene


def test_prompts_decide_colours_and_place(pipeline: StableDiffusionXLPipeline) -> None:
    check(SCENES, generate(pipeline, [caption(scene) for scene in SCENES]))


def test_prompts_decide_the_shape(pipeline: StableDiffusionXLPipeline) -> None:
    scenes = [Scene(shape, "yellow", "blue", "large", "centre") for shape in SHAPES]
    made = [seen(p)[2] for p in generate(pipeline, [caption(s) for s in scenes])]
    true = [p[..., 0] > 128 for p in draw(scenes, 128, 128)]
    for shape, inside in zip(SHAPES, made, strict=True):
        overlap = [(inside & t).sum() / (inside | t).sum() for t in true]
        assert list(SHAPES)[int(np.argmax(overlap))] == shape, overlap


def test_prompts_decide_the_size(pipeline: StableDiffusionXLPipeline) -> None:
    scenes = [Scene("circle", "white", "green", size, "centre") for size in SIZES]
    small, large = (seen(p)[2].mean() for p in generate(pipeline, [caption(s) for s in scenes]))
    assert large > 2 * small


@pytest.mark.parametrize(("height", "width"), [(128, 192), (192, 128)])
def test_it_draws_at_other_aspect_ratios(
    pipeline: StableDiffusionXLPipeline, height: int, width: int
) -> None:
    prompts = [caption(scene) for scene in SCENES[1:4]]
    check(SCENES[1:4], generate(pipeline, prompts, height=height, width=width))


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
