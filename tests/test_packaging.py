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
    for package in SETTINGS["packages"]:
        folder = ROOT / Path(*package.split("."))
        patterns = SETTINGS["package-data"].get(package, [])
        installed = {file for pattern in patterns for file in folder.glob(pattern)}
        inner = {ROOT / Path(*p.split(".")) for p in SETTINGS["packages"]} - {folder}
        for file in folder.rglob("*"):
            if (
                file.is_file()
                and file.suffix not in (".py", ".pyc")
                and not inner & {*file.parents}
            ):
                assert file in installed, file
