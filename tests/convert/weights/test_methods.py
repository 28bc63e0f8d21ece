"""What a recipe's [compress] makes of each tensor, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import Job, make_plan
from convert.recipe.recipe import parse_recipe
from convert.weights.compress import Method

RECIPE = """
name = "toy"
source.path = "toy"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["16", "6", "4"] }
target.deployment = "macOS15"
[compress]
"""


def jobs(toy: Path, compress: str) -> dict[tuple[str, str], Job]:
    """Jobs by the artifact's bits and the component."""
    plan = make_plan(parse_recipe(RECIPE + compress, where="test"), open_checkpoint(toy))
    return {(a.artifact.bits, c): job for a in plan.artifacts for c, job in a.jobs.items()}


def test_the_most_specific_bits_win_and_16_bits_stay(toy: Path) -> None:
    found = jobs(
        toy,
        """
        components = { text_encoder = "8", vae_decoder = "8" }
        tensors = [
            { name = "down_blocks.*", bits = "8" },
            { name = "down_blocks.0.*", bits = "16" },
            { component = "text_encoder", name = "encoder.layers.0.mlp.fc1.weight", bits = "2" },
        ]
        """,
    )
    assert not any(job.compression.methods for (bits, _), job in found.items() if bits == "16")
    unet = found["4", "unet"].compression
    assert unet.method("mid_block.resnets.0.conv1.weight") == Method("4")
    assert unet.method("down_blocks.1.resnets.0.conv1.weight") == Method("8")
    assert unet.method("down_blocks.0.resnets.0.conv1.weight") is None
    text = found["4", "text_encoder"]
    assert text == found["6", "text_encoder"]  # its bits do not depend on the artifact's
    assert text.compression.method("encoder.layers.0.mlp.fc1.weight") == Method("2")
    assert text.compression.method("encoder.layers.0.mlp.fc2.weight") == Method("8")
    assert found["6", "text_encoder_2"].bits == "6"
    assert not found["6", "vae_encoder"].compression.methods
    assert found["6", "vae_decoder"].compression.method("decoder.conv_in.weight") == Method("8")


def test_a_tensor_with_fewer_channels_than_a_group_is_one_group(toy: Path) -> None:
    unet = jobs(toy, "group_size = 16")["4", "unet"].compression
    assert unet.method("conv_in.weight") is None or unet.method("conv_in.weight").group_size == 16
    assert unet.method("mid_block.resnets.0.conv1.weight") == Method("4", 16)
    checkpoint = open_checkpoint(toy)
    conv_out = checkpoint.component_tensors("unet")["conv_out.weight"]
    assert conv_out.shape[0] < 16
    assert unet.method("conv_out.weight") in (None, Method("4"))


def test_a_tensor_may_have_groups_of_its_own(toy: Path) -> None:
    found = jobs(
        toy, 'tensors = [{ name = "mid_block.resnets.0.conv1.weight", bits = "4", group_size = 8 }]'
    )
    methods = dict(found["6", "unet"].compression.methods)
    assert methods["mid_block.resnets.0.conv1.weight"] == Method("4", 8)
    assert methods["mid_block.resnets.0.conv2.weight"] == Method("6")


@pytest.mark.parametrize(
    ("compress", "says"),
    [
        ("group_size = 48", "group_size 48 does not divide the 128 output channels of text_enc"),
        (
            'tensors = [{ name = "mid_block.resnet.0.conv1.weight", bits = "8" }]',
            "unet has no tensor `mid_block.resnet.0.conv1.weight`\n"
            "Did you mean `mid_block.resnets.0.conv1.weight`?",
        ),
        (
            'tensors = [{ name = "conv_in.bias", bits = "8" }]',
            "`conv_in.bias` of unet is never compressed",
        ),
        (
            'tensors = [{ component = "text_encoder", name = "down_blocks.*", bits = "8" }]',
            "text_encoder has no tensor `down_blocks",
        ),
        ('components = { unett = "8" }', "components.unett: unknown key; did you mean `unet`?"),
        ('components = { unet = "mixed-4.5" }', "an average; one width is needed here"),
        (
            'tensors = [{ component = "net", name = "*", bits = "8" }]',
            'component: "net" is not one of',
        ),
        ("group_size = 2", "must be at least 4, not 2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(toy: Path, compress: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        jobs(toy, compress)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("compress", "key"),
    [
        ("group_size = 16", "compress.group_size: a palette for each group of channels"),
        ('components = { unet = "3" }', "compress.components.unet: `3`"),
        ('tensors = [{ name = "*", bits = "int4" }]', "compress.tensors[0].bits: `int4`"),
        (
            'tensors = [{ name = "*", bits = "8", group_size = 8 }]',
            "compress.tensors[0].group_size: a palette for each group of channels",
        ),
    ],
)
def test_a_target_that_cannot_hold_it_is_answered_with_one_that_can(
    toy: Path, compress: str, key: str
) -> None:
    text = RECIPE.replace("macOS15", "iOS17") + compress
    with pytest.raises(InputError) as caught:
        parse_recipe(text, where="test")
    assert f"{key} needs a deployment target of macOS15 or iOS18" in str(caught.value)
    assert 'write deployment = "iOS18"' in str(caught.value)


def test_overrides_need_something_that_is_compressed(toy: Path) -> None:
    with pytest.raises(InputError, match="no artifact is compressed"):
        parse_recipe(
            'name = "toy"\nsource.path = "toy"\n[compress]\ncomponents = { unet = "8" }',
            where="test",
        )
