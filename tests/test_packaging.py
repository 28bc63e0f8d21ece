"""What is installed is complete: every module and every data file of the packages."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_folder_with_modules_is_a_package_that_is_installed() -> None:
    folders = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for top in ("convert", "verify", "release", "recipes")
        for p in (ROOT / top).rglob("*.py")
    }
    assert folders == set(SETTINGS["packages"])


def test_every_data_file_is_installed() -> None:
    packages = {ROOT / Path(*package.split(".")): package for package in SETTINGS["packages"]}
    for folder in packages:
        for file in (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            owner = next(parent for parent in file.parents if parent in packages)
            if file.suffix != ".py":
                name = file.relative_to(owner)
                patterns = SETTINGS["package-data"].get(packages[owner], [])
                assert any(
                    len(Path(p).parts) == len(name.parts) and name.match(p) for p in patterns
                ), file
