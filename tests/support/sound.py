"""Sound artifacts of as many shapes and sizes as one likes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.values import ATTENTIONS
from tests.support.checkpoints import make_checkpoint
from tests.support.plantings import made, remake_manifest

SIDES = range(64, 577, 8)


def sound_artifacts(folder: Path, seed: int) -> Iterator[tuple[str, Path, Checkpoint]]:
    """Artifacts of random checkpoints, each with what it is; a few of each checkpoint."""
    random = Random(seed)
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shape = random_shape(random)
        checkpoint = open_checkpoint(
            make_checkpoint(folder / "c", seed=random.randrange(1000), **shape)
        )
        step = 8 << (len(shape["unet"]["block_out_channels"]) - 1)
        recipe, bits = random_recipe(random)
        # Sides that halve evenly, and such that do not.
        sizes = [f"{_side(random, s)}x{_side(random, s)}" for s in (step, 8)]
        for size, width in product(dict.fromkeys(sizes), bits):
            text = recipe
            if width == "16":  # there is nothing to compress, and a recipe that says how is refused
                text = "\n".join(x for x in recipe.splitlines() if not x.startswith("compress"))
            found = made(checkpoint, folder / "out", text, (size,), ATTENTIONS, (width,))
            for (attention, *_), artifact in found.items():
                if random.random() < 0.2:
                    remake_manifest(artifact)
                yield f"{shape} {attention} {width} {size} {recipe}", artifact, checkpoint


def random_shape(random: Random) -> dict[str, Any]:
    """Arguments of `make_checkpoint`: widths, heads, levels, groups, VAEs, text encoders."""
    levels = random.choice((2, 2, 3, 4))
    groups = random.choice((4, 8, 16))
    widths = sorted(groups * random.choice((1, 2, 3, 4, 5)) for _ in range(levels))
    widths = [width if width >= 16 else 16 for width in widths]
    heads = [random.choice([h for h in (1, 2, 4, 8) if width % h == 0]) for width in widths]
    cross = [level == levels - 1 or random.random() < 0.6 for level in range(levels)]
    vae_levels = random.choice((2, 3, 4))
    vae_groups = random.choice((4, 8))
    shape: dict[str, Any] = {
        "unet": {
            "block_out_channels": tuple(widths),
            "down_block_types": tuple(
                "CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross
            ),
            "up_block_types": tuple(
                "CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)
            ),
            "transformer_layers_per_block": tuple(random.choice((1, 2)) for _ in widths),
            "attention_head_dim": tuple(heads),
            "layers_per_block": random.choice((1, 2)),
            "norm_num_groups": groups,
            "addition_time_embed_dim": random.choice((8, 16, 32)),
            "use_linear_projection": random.random() < 0.7,
            "flip_sin_to_cos": random.random() < 0.8,
            "freq_shift": random.choice((0, 0, 1)),
            "in_channels": random.choice((4, 4, 9)),
        },
        "vae": {
            "block_out_channels": tuple(
                vae_groups * random.choice((2, 3, 4)) for _ in range(vae_levels)
            ),
            "down_block_types": ("DownEncoderBlock2D",) * vae_levels,
            "up_block_types": ("UpDecoderBlock2D",) * vae_levels,
            "layers_per_block": random.choice((1, 2)),
            "norm_num_groups": vae_groups,
            "scaling_factor": random.choice((0.13025, 0.18215)),
            "mid_block_add_attention": random.random() < 0.8,
        },
        "text": {"num_hidden_layers": random.choice((2, 3)), "num_attention_heads": 2},
        "text_2": {"num_hidden_layers": random.choice((2, 4)), "num_attention_heads": 4},
    }
    return shape


def random_recipe(random: Random) -> tuple[str, tuple[str, ...]]:
    """A recipe's text, for attentions, sizes and bits to be filled in, and the bits."""
    newer = random.random() < 0.5
    bits = ["16", "8", "6", "4", "2", "1", "int8", *(("3", "int4") if newer else ())]
    target = random.choice(("macOS15", "iOS18")) if newer else random.choice(("macOS14", "iOS17"))
    lines = ['name = "a"', 'source.path = "a"', f'target.deployment = "{target}"']
    if random.random() < 0.3:
        lines.append('target.vae_precision = "float16"')
    if newer and random.random() < 0.4:
        lines.append(f"compress.group_size = {random.choice((4, 8))}")
    if random.random() < 0.4:
        lines.append('compress.components = {{ vae_decoder = "4" }}')
    if random.random() < 0.4:  # tensors of several widths
        lines.append('compress.tensors = [{{ name = "mid_block.*", bits = "4" }}]')
    lines.append("matrix = {{ attention = {attentions}, resolution = {sizes}, bits = {bits} }}")
    return "\n".join(lines), tuple(random.sample(bits, 2))


def _side(random: Random, step: int) -> int:
    return max(step, random.choice(SIDES) // step * step)
