"""The toy's pictures: seeded, and as their captions say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from convert.toy.drawings import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    draw,
    random_scenes,
    words,
)

HEIGHT, WIDTH = 96, 144


def make(seed: int) -> tuple[list[Scene], list[str], np.ndarray]:
    generator = np.random.default_rng(seed)
    scenes = random_scenes(20, generator)
    texts = [caption(scene, generator) for scene in scenes]
    return scenes, texts, draw(scenes, HEIGHT, WIDTH, generator)


def test_the_seed_decides_everything() -> None:
    one, again, other = make(1), make(1), make(2)
    assert one[:2] == again[:2]
    assert np.array_equal(one[2], again[2])
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_captions_say_what_is_drawn() -> None:
    scene = Scene("circle", "red", "blue", "large", "left")
    assert caption(scene) == "a large red circle on a blue background, on the left"
    for scene, text, picture in zip(*make(3), strict=True):
        said = text.replace(",", "").split()
        at = next(i for i, word in enumerate(said) if word in SHAPES)
        assert (said[at], said[at - 1]) == (scene.shape, scene.colour)
        assert scene.background in said[at:]
        assert ({*said} & {*SIZES}) <= {scene.size}
        assert scene.position in said or scene.position == "centre"
        # Both colours fill a part of the picture, up to the jitter.
        for colour in (scene.colour, scene.background):
            distance = np.abs(picture.astype(int) - COLOURS[colour]).max(-1)
            assert (distance <= 9).mean() > 0.005


def test_every_word_of_a_caption_is_a_word_of_the_tokenizer() -> None:
    generator = np.random.default_rng(4)
    texts = [caption(scene, generator) for scene in random_scenes(400, generator)]
    assert {w for text in texts for w in text.replace(",", "").split()} == set(words())


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_where_and_as_large_as_said(shape: str) -> None:
    shares = {}
    for size, position in product(SIZES, POSITIONS):
        picture = draw([Scene(shape, "white", "black", size, position)], HEIGHT, WIDTH)[0, ..., 0]
        inside = (picture > 128).astype(float)
        shares[size] = inside.mean()
        rows, columns = np.nonzero(inside)
        centre = ((columns.mean() + 0.5) / WIDTH, (rows.mean() + 0.5) / HEIGHT)
        assert centre == pytest.approx(POSITIONS[position], abs=0.03)
    assert shares["large"] > 2 * shares["small"]


def test_shapes_differ_and_have_smooth_edges() -> None:
    scenes = [Scene(shape, "white", "black", "large", "centre") for shape in SHAPES]
    pictures = draw(scenes, HEIGHT, WIDTH)[..., 0].astype(float)
    for i, one in enumerate(pictures):
        between = ((one > 40) & (one < 220)).sum()
        assert between > 20
        for other in pictures[i + 1 :]:
            assert (np.abs(one - other) > 128).mean() > 0.01
