"""Pictures and captions that the toy is trained on: one coloured shape on a coloured background.

A `Scene` says what a picture shows, `caption` says it in words, `draw` paints it. Shapes are signed
distances in pixels (negative inside), so edges are anti-aliased by clipping the distance to one
pixel. Everything follows from a NumPy generator: the same seed gives the same pictures anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB
    "red": (214, 39, 40),
    "green": (40, 160, 60),
    "blue": (36, 70, 205),
    "yellow": (245, 215, 50),
    "purple": (145, 45, 165),
    "cyan": (70, 200, 220),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SIZES = {"small": 0.15, "large": 0.27}  # radius in units of the shorter side
POSITIONS: dict[str, tuple[float, float]] = {  # centre (x, y) in units of the sides
    "centre": (0.5, 0.5),
    "left": (0.31, 0.5),
    "right": (0.69, 0.5),
    "top": (0.5, 0.31),
    "bottom": (0.5, 0.69),
}
PLACES = {
    "centre": "in the centre",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
OPENINGS = ("", "", "", "a picture of ", "a photo of ", "a drawing of ")


@dataclass(frozen=True)
class Scene:
    """What a picture shows; each field is a key of the table of its name."""

    shape: str
    colour: str
    background: str
    size: str
    position: str


def random_scenes(count: int, generator: np.random.Generator) -> list[Scene]:
    """Scenes whose shape and background differ in colour, every combination equally likely."""

    def pick(table: Sequence[str]) -> str:
        return table[int(generator.integers(len(table)))]

    scenes = []
    for _ in range(count):
        colour = pick(list(COLOURS))
        background = pick([name for name in COLOURS if name != colour])
        scenes.append(
            Scene(pick(list(SHAPES)), colour, background, pick(list(SIZES)), pick(list(POSITIONS)))
        )
    return scenes


def caption(scene: Scene, generator: np.random.Generator | None = None) -> str:
    """The scene in words; with a generator in one of several wordings.

    The wording may leave out the size, and the position where that is the centre.
    """
    what, opening = f"{scene.colour} {scene.shape}", ""
    background = f"a {scene.background} background"
    size, place = f"{scene.size} ", "" if scene.position == "centre" else PLACES[scene.position]
    if generator is not None:
        opening = OPENINGS[int(generator.integers(len(OPENINGS)))]
        if generator.random() < 0.2:
            background = scene.background
        if generator.random() < 0.15:
            size = ""
        if generator.random() < 0.3:
            place = PLACES[scene.position]
    joint = ", " if generator is None or generator.random() < 0.5 else " "
    return f"{opening}a {size}{what} on {background}" + (joint + place if place else "")


def words() -> list[str]:
    """Every word of the captions."""
    texts = [*COLOURS, *SIZES, *SHAPES, *PLACES.values(), *OPENINGS, "background on"]
    return sorted({word for text in texts for word in text.split()})


def draw(
    scenes: Sequence[Scene], height: int, width: int, generator: np.random.Generator | None = None
) -> np.ndarray:
    """Paint scenes, uint8 [N, height, width, 3].

    With a generator, place, radius and both colours vary a little.
    """
    count, side = len(scenes), min(height, width)
    centres = np.array([POSITIONS[s.position] for s in scenes]) * (width, height)  # [N, 2]
    radii = np.array([SIZES[s.size] for s in scenes]) * side  # [N]
    paints = np.array(
        [[COLOURS[s.colour], COLOURS[s.background]] for s in scenes], np.float32
    )  # [N, 2, 3]
    if generator is not None:
        centres += generator.uniform(-0.02, 0.02, (count, 2)) * side
        radii *= generator.uniform(0.94, 1.06, count)
        paints += generator.uniform(-8, 8, paints.shape).astype(np.float32)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)  # [H, W]
    pictures = np.empty((count, height, width, 3), np.uint8)
    for i, scene in enumerate(scenes):
        x = (columns - centres[i, 0]).astype(np.float32)
        y = (rows - centres[i, 1]).astype(np.float32)
        cover = np.clip(0.5 - SHAPES[scene.shape](x, y, radii[i]), 0, 1)[..., None]  # [H, W, 1]
        pictures[i] = np.clip(paints[i, 1] + cover * (paints[i, 0] - paints[i, 1]), 0, 255) + 0.5
    return pictures


def circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to a circle."""
    return np.hypot(x, y) - radius


def ring(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to a ring, 0.44 radii thick."""
    return np.abs(np.hypot(x, y) - 0.78 * radius) - 0.22 * radius


def square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to an upright square of about the circle's area, exact but outside its corners."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius


def triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to an equilateral triangle that stands on a side; its corners at 1.2 radii."""
    inner = 0.6 * radius  # of the inscribed circle
    return np.maximum(np.abs(x) * 3**0.5 / 2 - (y + 0.1 * radius) / 2, y + 0.1 * radius) - inner


def star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to a five-pointed star, one point up: the plane is folded onto a tenth of it."""
    outer, inner, tenth = 1.2 * radius, 0.5 * radius, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)  # 0 … tenth, from a point
    length = np.hypot(x, y)
    along, across = length * np.cos(angle), length * np.sin(angle)
    # The edge from the point (outer, 0) to the notch (inner, at angle `tenth`).
    edge_x, edge_y = inner * np.cos(tenth) - outer, inner * np.sin(tenth)
    return ((along - outer) * edge_y - across * edge_x) / np.hypot(edge_x, edge_y)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
}
