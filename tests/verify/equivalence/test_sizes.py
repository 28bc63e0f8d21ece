"""Every integer of the small program says what it is, or nothing is said at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute
from convert.networks.build import build_network
from convert.opening.door import open_checkpoint
from convert.values import Resolution
from verify.artifact.ours import our_program
from verify.equivalence.sizes import (
    Ambiguous,
    constant_integers,
    integers,
    size_map,
    sizes_of,
    small_size,
    small_size_for,
)
from verify.mil import Program

COMPONENTS = ("unet", "vae_decoder", "vae_encoder")


def program(source: Checkpoint, component: str, size: Resolution) -> Program:
    network = build_network(
        source, component, resolution=size, attention="original", dtype=np.float16,
        deployment="macOS14",
    )  # fmt: skip
    return our_program(network, component, "macOS14")


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("shape", ["base", "no_mid_attention"])
def test_sizes_are_in_the_small_program_and_nothing_else_is_of_their_number(
    shapes: Mapping[str, Path], shape: str, component: str
) -> None:
    source = open_checkpoint(shapes[shape])
    shipped = Resolution(392, 216)
    one = program(source, component, shipped)
    small = small_size(source, {component: [one]})
    found = {*integers(program(source, component, small))}
    sizes = sizes_of(component, source, small)
    assert {*sizes.values()} <= found
    constants = constant_integers(component, source, one)
    assert {n for n in found if n > 0} - {*sizes.values()} <= constants
    assert constants.isdisjoint(sizes.values())


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(COMPONENTS), st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_a_map_tells_all_sizes_apart(
    base: Checkpoint, width: int, height: int, component: str, constant: int
) -> None:
    shipped = Resolution(8 * width, 8 * height)
    small = small_size_for(base, {(component, shipped): {0, 1, 2, 3, 4, constant}})
    found = size_map(component, base, small, shipped, {constant})
    wanted = sizes_of(component, base, shipped)
    assert [s.name for s in found.sizes.values()] == list(wanted)
    assert [found.expected(s.small) for s in found.sizes.values()] == list(wanted.values())
    assert all(s.small != s.shipped for s in found.sizes.values())
    assert found.expected(constant) == constant
    assert small.width != small.height


def test_one_small_size_is_for_all_sizes_of_sdxl(base: Checkpoint) -> None:
    texts = ("1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344",
             "1536x640", "640x1536")  # fmt: skip
    wanted = {
        (c, Resolution.parse(t)): {0, 1, 2, 3, 4, 8, 16, 32} for c in COMPONENTS for t in texts
    }
    small = small_size_for(base, wanted)
    assert small.width * small.height <= 320 * 320
    with pytest.raises(CannotExecute, match="some halve to odd sides"):
        small_size_for(base, {**wanted, ("unet", Resolution(1032, 1024)): {0}})


def test_what_could_be_two_things_is_told(base: Checkpoint) -> None:
    shipped = Resolution(512, 768)
    for small, why in (
        (Resolution(256, 256), "256x256, 32 is the width .* and the height"),
        (Resolution(288, 224), "9 is .* and a constant"),
        (Resolution(512, 64), "64 is the width of latents at level 0 at 512x64 and at 512x768"),
        (Resolution(72, 64), "only one of"),
    ):
        with pytest.raises(Ambiguous, match=why):
            size_map("unet", base, small, shipped, {9})
