"""Recipes ready to run; `sdxl-coreml recipes` lists them."""

from __future__ import annotations

from pathlib import Path

from convert.errors import InputError
from convert.recipe.recipe import Recipe, load_recipe, parse_recipe

FOLDER = Path(__file__).parents[2] / "recipes"  # data alone: installed beside the packages


def builtin_recipes() -> dict[str, str]:
    """The built-in recipes: name → what the recipe's first comment line says it is for."""
    names = sorted(file.stem for file in FOLDER.glob("*.toml"))
    return {name: builtin_recipe_text(name).partition("\n")[0].lstrip("# ") for name in names}


def builtin_recipe_text(name: str) -> str:
    """The TOML of a built-in recipe; `InputError` where there is none of that name."""
    known = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name not in known:
        raise InputError(
            f"there is no built-in recipe `{name}`; there are {', '.join(known)}",
            near=(name, list(known)),
            suggest="did you mean `{}`?".format,
        )
    return known[name].read_text("utf-8")


def read_recipe(recipe: str) -> Recipe:
    """A recipe file, or else a built-in recipe of that name, whatever folders are called so."""
    if recipe in builtin_recipes() and not Path(recipe).is_file():
        text = builtin_recipe_text(recipe)
        return parse_recipe(text, where=recipe, folder=Path.cwd())
    return load_recipe(Path(recipe))
