"""The recipes for single files and LoRAs: explained, and they make what they say of tiny files."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file

from convert.recipe.builtin import builtin_recipe_text
from convert.recipe.recipe import Recipe, parse_recipe
from tests.support.loras import write_lora
from tests.support.people import User, exact_lora, key_in_file, kohya
from tests.support.single_files import PREFIXES, write_file

NAMES = ("civitai-file", "illustrious", "lora-stack", "pony-v6-xl")
MLP = "encoder.layers.0.mlp.fc1"
# What of each is a placeholder, and what is said of it.
OWN = {
    "civitai-file": ("my-model.safetensors", "`path` in the recipe's [source], or --source"),
    "illustrious": ("illustrious.safetensors", "`path` in the recipe's [source], or --source"),
    "lora-stack": ("my-style.safetensors", "in `loras` of the recipe's [source], or after --lora"),
    "pony-v6-xl": ("ponyDiffusionV6XL.safetensors", "`path` in the recipe's [source], or --source"),
}


def small(user: User, released: Path, name: str) -> Path:
    """The recipe with the user's files in place of those that it names, at 64x64 in 16 bits."""
    values = tomllib.loads(builtin_recipe_text(name))
    values["matrix"] = {"attention": ["original"], "resolution": ["64x64"], "bits": ["16"]}
    values["verify"]["levels"] = ["structure"]
    source, held = values["source"], load_file(released)
    if "vae" in source:
        prefix = PREFIXES["vae"]
        vae = {n.removeprefix(prefix): v for n, v in held.items() if n.startswith(prefix)}
        source["vae"] = str(write_file(user.folder / "vae.safetensors", vae))
    shape = tuple(held[key_in_file("text_encoder", MLP)].shape)
    for number, lora in enumerate(source.get("loras", ())):
        for key in ("repo", "file", "path"):
            lora.pop(key, None)
        tensors = {kohya("text_encoder", MLP): exact_lora(shape, number)}
        lora["path"] = str(write_lora(user.folder / f"lora{number}.safetensors", tensors))
    path = user.folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(values), "utf-8")
    return path


def parsed(name: str) -> Recipe:
    return parse_recipe(builtin_recipe_text(name), where=name)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_listed_and_explained(user: User, name: str) -> None:
    about = user.told("recipes")["recipes"][name]
    assert 20 < len(about) < 105
    assert about in user.sees("recipes")
    text = builtin_recipe_text(name)
    keys = [line for line in text.splitlines() if re.match(r"(path|loras|vae|bits) = ", line)]
    assert keys
    assert text.count("#") > 8
    assert "<-" in text
    assert parsed(name).verify.prompts


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_comments_is_right_when_it_is_taken(name: str) -> None:
    """Each line that says `# key = value` is one that the recipe may have."""
    lines = builtin_recipe_text(name).splitlines()
    offered = [n for n, line in enumerate(lines) if re.match(r"# [a-z_0-9]+ = ", line)]
    for number in offered:
        key = lines[number].removeprefix("# ").partition(" ")[0]
        with_it = [*lines[:number], lines[number].removeprefix("# "), *lines[number + 1 :]]
        if key == "url":
            with_it = [line for line in with_it if not line.startswith("path = ")]
        parse_recipe("\n".join(with_it), where=name)
        tomllib.loads(lines[number].removeprefix("# "))


@pytest.mark.parametrize("name", OWN)
def test_a_file_that_is_not_there_yet_is_asked_for_before_anything_is_fetched(
    user: User, name: str
) -> None:
    file, hint = OWN[name]
    said = user.refused("plan", name)
    assert f"{file}: no such folder or file" in said
    assert hint in said


@pytest.mark.parametrize("name", NAMES)
def test_each_plans_with_tiny_files_in_place_of_its_own(
    user: User, released: Path, name: str
) -> None:
    plan = user.told("plan", small(user, released, name), "--source", released)
    assert [a["artifact"] for a in plan["artifacts"]] == [
        f"{parsed(name).name}_original_16-bit_64x64"
    ]
    assert ("vae.safetensors" in json.dumps(plan["source"]["parts"])) == (name == "pony-v6-xl")
    strengths = [(lora["scale"], lora["text_scale"]) for lora in plan["loras"]]
    assert strengths == ([(1.0, 1.0), (0.8, 0.6)] if name == "lora-stack" else [])


def test_a_stack_of_loras_runs(user: User, released: Path) -> None:
    recipe = small(user, released, "lora-stack")
    user.sees("run", recipe, "--source", released, "--out", user.folder / "out")
    card = (user.folder / "out" / "release" / "README.md").read_text()
    assert "Merged into the weights, in this order" in card
    assert card.index("lora0.safetensors") < card.index("lora1.safetensors")
    assert "strength 0.8, of the text encoders 0.6" in card
    assert "| Scheduler | LCM |" in card


def test_the_sizes_are_as_the_models_were_trained() -> None:
    for name in NAMES:
        for artifact in parsed(name).artifacts():
            width, height = artifact.resolution.width, artifact.resolution.height
            assert width % 64 == height % 64 == 0
            assert 0.9 * 1024**2 < width * height < 1.1 * 1024**2
