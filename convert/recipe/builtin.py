"""Recipes ready to run; `sdxl-coreml recipes` lists them."""

from importlib.resources import files

from convert.errors import InputError, nearest


def builtin_recipes() -> dict[str, str]:
    """The built-in recipes: name → what the recipe's first comment line says it is for."""
    names = sorted(
        file.name.removesuffix(".toml")
        for file in files("recipes").iterdir()
        if file.name.endswith(".toml")
    )
    return {name: builtin_recipe_text(name).partition("\n")[0].lstrip("# ") for name in names}


def builtin_recipe_text(name: str) -> str:
    """The TOML of a built-in recipe; `InputError` where there is none of that name."""
    known = {file.name: file for file in files("recipes").iterdir() if file.name.endswith(".toml")}
    file = known.get(f"{name}.toml")
    if file is None:
        names = sorted(known_name.removesuffix(".toml") for known_name in known)
        meant = nearest(name, names)
        raise InputError(
            f"there is no built-in recipe `{name}`; there are {', '.join(names)}",
            hint=f"did you mean `{meant}`?" if meant else None,
        )
    return file.read_text(encoding="utf-8")
