"""The commands about recipes: recipes, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from sdxl_coreml.options import JsonOption
from sdxl_coreml.terminal import Terminal


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the built-in recipes, or print one to start from.

    Example: sdxl-coreml recipes sdxl-quick > my.toml
    """
    from convert.recipe.builtin import builtin_recipe_text, builtin_recipes

    terminal = Terminal(as_json=as_json)
    if name is not None:
        text = builtin_recipe_text(name)
        terminal.result({"schema": 1, "name": name, "text": text}, text.rstrip("\n"))
        return
    known = builtin_recipes()
    width = max(map(len, known))
    terminal.result(
        {"schema": 1, "recipes": known},
        "\n".join(f"{name:<{width}}  {about}" for name, about in known.items()),
    )


def schema() -> None:
    """Print the recipe's JSON schema, for editors.

    Example: sdxl-coreml schema > recipe.schema.json
    """
    from convert.recipe.recipe import json_schema

    Terminal(as_json=True).result(json_schema())
