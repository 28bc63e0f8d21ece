"""Whether a VAE fits in float16, measured, where nothing says it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from convert.components import COMPONENTS
from convert.opening.door import open_checkpoint
from convert.plan.plan import Plan, make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Resolution
from tests.support.vaes import edit_vae_config, scaled_vae
from verify.reference import vae_precision
from verify.reference.vae_precision import LARGEST, MARGIN, reaches, settle_vae_precision

SMALL = Resolution(64, 64)


def silent(shapes: Mapping[str, Path], folder: Path, **scaled: float) -> Path:
    """A tiny checkpoint whose VAE's config says nothing; parts of the VAE are scaled."""
    path = Path(shutil.copytree(shapes["base"], folder / "silent"))
    edit_vae_config(path / "vae", force_upcast=None)
    scaled_vae(path / "vae", scaled)
    return path


def planned(path: Path, *components: str) -> Plan:
    text = """
    name = "x"
    source.path = "x"
    target.vae_precision = "auto"
    matrix = { attention = ["original"], resolution = ["64x64"] }
    """
    recipe = parse_recipe(text, where="test")
    return make_plan(recipe, open_checkpoint(path), components=components)


def settled(plan: Plan, out: Path) -> Plan:
    return settle_vae_precision(plan, Snapshot(plan.checkpoint.path, None, None, ()), out)


def test_a_vae_that_fits_is_converted_in_float16_and_says_why(
    shapes: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = silent(shapes, tmp_path), tmp_path / "out"
    plan = settled(planned(path, "vae_decoder"), out)
    assert plan.precision.value == "float16"
    assert plan.precision.because.startswith("measured at 64x64: the largest value is ")
    (made,) = run(plan, Snapshot(path, None, None, ()), out, jobs=1)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["vae_precision"] == "float16"
    assert manifest["vae_precision_because"] == plan.precision.because
    monkeypatch.setattr(vae_precision, "reaches", lambda *_: pytest.fail("measured again"))
    assert settled(planned(path, "vae_decoder"), out).precision == plan.precision


def test_apple_304_an_encoder_that_overflows_is_converted_in_float32(
    shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    """apple/ml-stable-diffusion #304: image-to-image is black; the decoder alone was looked at."""
    plan = planned(silent(shapes, tmp_path, encoder=30000), "vae_decoder", "vae_encoder")
    found = settled(plan, tmp_path / "out").precision
    assert found.value == "float32"
    assert "of VAEEncoder, given " in found.because
    assert "float16 ends at 65504" in found.because


def test_koboldcpp_845_a_decoder_that_overflows_is_converted_in_float32(
    shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    """LostRuins/koboldcpp #845: SDXL's own VAE in float16 draws black pictures."""
    path = silent(shapes, tmp_path, decoder=30000)
    found = settled(planned(path, "vae_decoder"), tmp_path / "out").precision
    assert found.value == "float32"
    assert "of VAEDecoder, given " in found.because


def test_only_what_is_converted_counts(shapes: Mapping[str, Path], tmp_path: Path) -> None:
    path = silent(shapes, tmp_path, encoder=30000)
    assert settled(planned(path, "vae_decoder"), tmp_path / "out").precision.value == "float16"


def test_a_weight_beyond_float16_needs_no_measurement(
    shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    path = silent(shapes, tmp_path, decoder=1e7)
    found = settled(planned(path, "vae_decoder"), tmp_path / "out").precision
    assert found.value == "float32"
    assert found.because.startswith("it cannot be built in float16: weight `decoder.conv_in.")


def test_a_larger_picture_reaches_no_further_than_the_margin(
    shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(silent(shapes, tmp_path))
    plan = planned(checkpoint.path, "vae_decoder", "vae_encoder")
    jobs = {j.component: j for j in plan.jobs if COMPONENTS[j.component].part == "vae"}
    small, large = (reaches(checkpoint, jobs, size) for size in (SMALL, Resolution(192, 192)))
    assert isinstance(small, dict)
    assert isinstance(large, dict)
    for component in jobs:
        assert 0 < small[component].value < LARGEST / MARGIN
        assert large[component].value < MARGIN * small[component].value
