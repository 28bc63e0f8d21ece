"""Gates that no artifact is judged by are refused before anything is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.plan.gates import require_gates
from convert.plan.plan import make_plan
from convert.recipe.builtin import builtin_recipe_text, builtin_recipes
from convert.recipe.recipe import Recipe, parse_recipe

Run = Callable[..., tuple[int, str, str]]
RECIPE = """
name = "r"
source.path = "base"
matrix = {{ attention = ["original", "split_einsum"], resolution = ["64x64"], bits = {bits} }}
{more}
[verify]
{verify}
gates = [{{ bits = "{of}", component = "{component}", {what} }}]
"""


def recipe(
    *,
    bits: str = '["16", "6"]',
    of: str = "6",
    component: str = "unet",
    what: str = "min_snr_db = 10.0",
    more: str = "",
    verify: str = "",
) -> Recipe:
    values = dict(bits=bits, of=of, component=component, what=what, more=more, verify=verify)
    return parse_recipe(RECIPE.format(**values), where="test")


PICTURES = {"component": "pipeline", "what": "min_psnr_db = 20.0"}
VAIN = {
    "bits that the matrix lacks": ({"of": "4"}, "unet at 4 bits is for no artifact: .* 16, 6"),
    "bits of its component": (
        {"of": "8", "more": 'compress.components.unet = "8"'},
        "unet at 8 bits is for no artifact",
    ),
    "weights that stay": ({"component": "vae_decoder"}, "weights are not compressed there"),
    "a component that stays": (
        {"component": "text_encoder", "more": 'compress.components.text_encoder = "16"'},
        "weights are not compressed there",
    ),
    "no compression": ({"of": "16"}, "unet at 16 bits judges nothing"),
    "no model": ({"component": "text_encoder_2"}, "the checkpoint has text_encoder, unet"),
    "a level that is left out": (
        {"verify": 'levels = ["structure", "conversion"]'},
        "judged at level compression, and verify.levels has structure, conversion",
    ),
    "pictures that are not made": (PICTURES, "judged at level generation"),
    "pictures of other bits": (
        {**PICTURES, "of": "4", "verify": 'levels = ["generation"]'},
        "pipeline at 4 bits is for no artifact",
    ),
}
SENSIBLE = {
    "the matrix's": {},
    "a VAE that is named": {
        "component": "vae_decoder", "more": 'compress.components.vae_decoder = "8"',
    },
    "a VAE of which a tensor is named": {
        "component": "vae_decoder",
        "more": 'compress.tensors = [{ component = "vae_decoder", name = "*", bits = "8" }]',
    },
    "pictures": {**PICTURES, "verify": 'levels = ["generation"]'},
    "pictures of 16 bits": {**PICTURES, "of": "16", "verify": 'levels = ["generation"]'},
}  # fmt: skip


@pytest.mark.parametrize("name", VAIN)
def test_a_gate_that_judges_nothing_is_refused(name: str) -> None:
    values, says = VAIN[name]
    components = ["text_encoder", "unet", "vae_decoder"]
    with pytest.raises(InputError, match=says) as error:
        require_gates(recipe(**values), components)
    assert error.value.where == "r: verify.gates[0]"
    assert error.value.hint


@pytest.mark.parametrize("name", SENSIBLE)
def test_a_gate_that_judges_something_is_not(name: str) -> None:
    require_gates(recipe(**SENSIBLE[name]), ["unet", "vae_decoder"])


@pytest.mark.parametrize("name", builtin_recipes())
def test_the_recipes_own_gates_judge(name: str) -> None:
    require_gates(parse_recipe(builtin_recipe_text(name), where=name), ["unet"])


def test_a_part_of_the_matrix_may_have_no_gate(base: Checkpoint) -> None:
    make_plan(recipe(), base, only="*16-bit*")
    make_plan(recipe(), base, components=["text_encoder"])
    with pytest.raises(InputError, match="for no artifact"):
        make_plan(recipe(of="4"), base, only="*16-bit*")


def test_plan_and_verify_refuse_it_with_exit_code_2(
    command: Run, shapes: Mapping[str, Path], base_artifact: Path, tmp_path: Path
) -> None:
    file, source = tmp_path / "r.toml", shapes["base"]

    def write(**values: str) -> None:
        file.write_text(recipe(**values).text)

    write(of="4")
    for words in (["plan", file], ["run", file, "--out", tmp_path / "out"]):
        code, out, err = command(*words, "--source", source)
        assert (code, out) == (2, "")
        assert "verify.gates[0]: the gate on unet at 4 bits is for no artifact" in err
    assert not (tmp_path / "out").exists()
    verify = ("verify", base_artifact, "--source", source, "--recipe", file)
    assert command(*verify)[0] == 2
    write(bits='["6"]')  # sound by itself, but not this artifact's
    code, _, err = command(*verify)
    assert code == 2
    assert "is of 16 bits; the gates of recipe r are for 6, and its matrix has 6" in err
    assert json.loads((base_artifact / "manifest.json").read_text())["bits"] == "16"


def test_tensors_that_are_all_too_small_to_compress_have_no_gate(base: Checkpoint) -> None:
    with pytest.raises(InputError, match="text_encoder at 6 bits judges nothing"):
        make_plan(recipe(component="text_encoder"), base)
