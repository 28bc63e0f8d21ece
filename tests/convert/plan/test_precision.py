"""What `vae_precision = "auto"` means, as far as a VAE tells without being computed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.files.disk import digest_file
from convert.known import vaes
from convert.known.vaes import KNOWN
from convert.opening.door import open_checkpoint
from convert.opening.vae import with_vae
from convert.plan.plan import Plan, make_plan
from convert.plan.precision import ChosenPrecision
from convert.plan.text import plan_document, plan_table
from convert.recipe.recipe import parse_recipe
from tests.support.vaes import WEIGHTS, bare_diffusers, edit_vae_config, folder_alone

ORIGINAL = "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e"
FP16_FIX = "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1"


def planned(
    checkpoint: Checkpoint,
    asked: str = "auto",
    components: Iterable[str] = (),
    digests: Mapping[Path, str] | None = None,
) -> Plan:
    text = f"""
    name = "x"
    source.path = "x"
    target.vae_precision = "{asked}"
    matrix = {{ attention = ["original"], resolution = ["64x64"] }}
    """
    recipe = parse_recipe(text, where="test")
    return make_plan(recipe, checkpoint, components=components, digests=digests or {})


def precisions(plan: Plan) -> dict[str, str]:
    return {job.component: job.precision for job in plan.jobs if job.component.startswith("vae")}


@pytest.fixture
def base(shapes: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes["base"], tmp_path / "base"))


@pytest.mark.parametrize(
    ("digest", "value", "why"),
    [
        (ORIGINAL, "float32", "it is stabilityai/sdxl-vae, which overflows in float16"),
        (FP16_FIX, "float16", "it is madebyollin/sdxl-vae-fp16-fix, which is made for float16"),
    ],
)
def test_a_published_vae_is_told_by_its_digest_before_its_config(
    base: Path, monkeypatch: pytest.MonkeyPatch, digest: str, value: str, why: str
) -> None:
    file = base / "vae" / WEIGHTS
    edit_vae_config(base / "vae", force_upcast=value == "float16")  # which says the contrary
    plan = planned(open_checkpoint(base), digests={file: digest})  # as the Hub lists it
    assert plan.precision == ChosenPrecision(value, f"by its SHA-256 {why}")
    assert precisions(plan) == {"vae_decoder": value, "vae_encoder": value}
    assert plan_document(plan)["vae_precision"]["value"] == value
    assert f"VAE in {value}: by its SHA-256" in plan_table(plan)
    monkeypatch.setattr(vaes, "SIZES", frozenset({file.stat().st_size}))
    monkeypatch.setattr(vaes, "KNOWN", {digest_file(file): KNOWN[digest]})
    assert planned(open_checkpoint(base)).precision == plan.precision  # of a file on this disk


@pytest.mark.parametrize(("upcast", "value"), [(False, "float16"), (True, "float32")])
def test_a_config_says_what_its_vae_is_made_for(base: Path, upcast: bool, value: str) -> None:
    own = edit_vae_config(base / "vae", force_upcast=not upcast)
    alone = edit_vae_config(folder_alone(base.parent, base), force_upcast=upcast)
    plan = planned(with_vae(open_checkpoint(own.parent), alone))
    said = f"its config.json says `force_upcast`: {str(upcast).lower()}"
    assert plan.precision == ChosenPrecision(value, said)
    assert set(precisions(plan).values()) == {value}


def test_what_nothing_says_is_to_be_measured(base: Path, tmp_path: Path) -> None:
    silent = open_checkpoint(edit_vae_config(base / "vae", force_upcast=None).parent)
    bare = with_vae(silent, bare_diffusers(tmp_path, base))
    for checkpoint in (silent, bare):
        plan = planned(checkpoint)
        assert plan.precision.value is None
        assert "are measured before it is converted" in plan_table(plan)
        assert plan_document(plan)["vae_precision"]["value"] is None
        assert set(precisions(plan).values()) == {"float32"}  # for sizes, until then
        measured = plan.with_precision(ChosenPrecision("float16", "measured"))
        assert set(precisions(measured).values()) == {"float16"}
        assert {job.precision for job in measured.jobs} == {"float16"}


def test_what_a_recipe_says_is_not_asked_about(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    for asked in ("float32", "float16"):
        plan = planned(checkpoint, asked)
        assert plan.precision == ChosenPrecision(asked, "")
        assert "VAE in" not in plan_table(plan)
    edit_vae_config(base / "vae", force_upcast=None)
    only = planned(open_checkpoint(base), components=["text_encoder"])
    assert only.precision == ChosenPrecision("float32", "none is converted")
