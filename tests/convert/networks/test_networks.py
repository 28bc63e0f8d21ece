"""Our networks, converted and run, against diffusers and transformers in float32."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.networks.attention import ATTENTION
from convert.opening.door import open_checkpoint
from convert.values import Resolution
from tests.support.checkpoints import SHAPES, write_component
from tests.support.vaes import scaled_vae
from verify.judge.metrics import compare
from verify.reference.recording import Case, Recording, record
from verify.runtime.runtimes import TorchRuntime

pytestmark = pytest.mark.usefixtures("one_thread")

# Latents of 16×16, 16×24 and, with a height and width that no level halves evenly, 25×17.
SIZES = {"square": (128, 128), "portrait": (128, 192), "landscape": (200, 136)}
# Big enough for more than 512 queries, with a last chunk that is shorter than the others.
CHUNKED = ("attention_at_every_level", "landscape")
FLOOR = {"unet": 50, "text_encoder": 45, "text_encoder_2": 45, "vae_decoder": 80, "vae_encoder": 80}
BELOW_FP16 = 4.0  # dB that we may lose against PyTorch float16, which rounds at other places


def assert_close(package: Path, component: str, cases: tuple[Case, ...]) -> None:
    model = TorchRuntime().load(package)
    found = {}
    for case in cases:
        outputs = model(case.inputs)
        assert outputs.keys() == case.outputs.keys()
        for name, reference in case.outputs.items():
            for half in range(len(reference)):
                snr = compare(reference[half], outputs[name][half]).snr_db
                found[case.name, half, name] = snr
                if component == "unet":
                    fp16 = compare(reference[half], case.fp16[name][half]).snr_db
                    assert snr >= fp16 - BELOW_FP16, (case.name, half)
    assert min(found.values()) >= FLOOR[component], found


@functools.cache
def recorded(checkpoint: Path, pixels: tuple[int, int]) -> Recording:
    """All components' cases in portrait, the UNet's in the other sizes."""
    source = open_checkpoint(checkpoint)
    components = source.components if pixels == SIZES["portrait"] else ["unet"]
    return record(source, components, resolution=Resolution(*pixels), fp16=["unet"])


def combinations() -> Iterator[Any]:
    """Every shape × size × attention; the usual run takes each pair of them once."""
    for i, shape in enumerate(SHAPES):
        for j, size in enumerate(SIZES):
            for k, attention in enumerate(ATTENTION):
                usual = (i + j + k) % 3 == 2 or (shape, size) == CHUNKED
                marks = () if usual else (pytest.mark.slow,)
                yield pytest.param(shape, size, attention, marks=marks)


@pytest.mark.parametrize(("shape", "size", "attention"), combinations())
def test_unet_computes_what_diffusers_does(
    shape: str, size: str, attention: str, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    pixels = (264, 200) if (shape, size) == CHUNKED else SIZES[size]
    path = tmp_path / "Unet.mlpackage"
    write_component(path, open_checkpoint(shapes[shape]), "unet", size=pixels, attention=attention)
    assert_close(path, "unet", recorded(shapes[shape], pixels).cases["unet"])


@pytest.mark.parametrize("shape", SHAPES)
def test_text_encoders_and_vae_compute_what_the_libraries_do(
    shape: str, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(shapes[shape])
    others = [name for name in checkpoint.components if name != "unet"]
    size = SIZES["portrait"]
    cases = recorded(shapes[shape], size).cases
    for component in others:
        path = tmp_path / f"{component}.mlpackage"
        write_component(path, checkpoint, component, size=size)
        assert_close(path, component, cases[component])


@pytest.mark.parametrize("factor", [1, 100])
def test_a_vae_in_float16_computes_what_pytorch_does_there(
    factor: float, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    """SDXL's VAEs made for float16 have activations of thousands, whose squares it cannot hold."""
    path = Path(shutil.copytree(shapes["base"], tmp_path / "scaled"))
    scaled_vae(path / "vae", {"encoder": factor, "decoder": factor})
    checkpoint, vae = open_checkpoint(path), ("vae_decoder", "vae_encoder")
    cases = record(checkpoint, vae, resolution=Resolution(64, 96), fp16=vae).cases
    for component in vae:
        package = tmp_path / f"{component}.mlpackage"
        write_component(package, checkpoint, component, vae_dtype=np.float16)
        (case,) = cases[component]
        for name, output in TorchRuntime().load(package)(case.inputs).items():
            theirs = compare(case.outputs[name], case.fp16[name]).snr_db
            assert compare(case.outputs[name], output).snr_db >= theirs - 2 * BELOW_FP16, component
