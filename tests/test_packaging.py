"""What is installed is complete: every module and every data file of the packages."""

from __future__ import annotations

import fnmatch
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
    for package in SETTINGS["packages"]:
        patterns = SETTINGS["package-data"].get(package, [])
        for file in (ROOT / Path(*package.split("."))).iterdir():
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                assert any(fnmatch.fnmatch(file.name, p) for p in patterns), file
