"""Compiled models: the `.mlmodelc` folders that apps load, from the packages, on any system.

    X.mlmodelc/
      model.mil                  the program as text             release/compile/mil_text.py
      coremldata.bin             the interface                   release/compile/coremldata.py
      metadata.json              what apps and Xcode show        release/compile/metadata.py
      analytics/coremldata.bin   the model file's digest         release/compile/coremldata.py
      weights/weight.bin         the package's, by hard link

Xcode's compiler changes neither program nor weights of an ML Program, so this is a change of
notation. On a Mac with Xcode its own compiler is used unless ours is asked for.
"""

from __future__ import annotations

import base64
import hashlib
from itertools import groupby
from pathlib import Path
from typing import Any

from convert import __version__
from convert.errors import CannotExecute, InputError
from convert.files.appearing import appearing
from convert.files.disk import disk_error, link
from release.compile import xcode
from release.compile.coremldata import analytics, coremldata, serialised_description
from release.compile.metadata import metadata_json
from release.compile.mil_text import write_program
from verify.artifact.folder import models_in

ENGINES = ("auto", "native", "xcode")
COMPILER = "sdxl-coreml"
BUILD_INFO = {"coremlc-component-MIL": COMPILER, "coremlc-version": __version__}


def choose_engine(engine: str) -> str:
    """`native` or `xcode`; `auto` is Xcode where it is installed.

    Raises:
        InputError: no such engine.
        CannotExecute: Xcode is asked for and not there.
    """
    if engine not in ENGINES:
        raise InputError(
            f"unknown engine {engine!r}; there are {', '.join(ENGINES)}",
            near=(engine, ENGINES),
        )
    available = engine != "native" and xcode.is_available()
    if engine == "xcode" and not available:
        raise CannotExecute(
            "Xcode's coremlcompiler is not installed here", hint="Use `--engine native`."
        )
    return "xcode" if available else "native"


def find_packages(path: Path) -> list[Path]:
    """The package at `path`, or the packages of the artifact folder there.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError("no such package or folder", where=path)
    if path.suffix in (".mlpackage", ".mlmodel"):
        return [path]
    packages = [file for file in models_in(path) if file.suffix == ".mlpackage"]
    if not packages:
        raise InputError(
            "neither an .mlpackage nor a folder that holds some",
            where=path,
            hint="Give an artifact's folder, as `run` and `convert` leave them, or a .mlpackage.",
        )
    return packages


def compile_package(package: Path, out: Path, *, engine: str = "auto") -> Path:
    """Write `<stem>.mlmodelc` into the folder `out`; it appears complete or not at all.

    Args:
        package: a `.mlpackage`, or a bare `.mlmodel` with its weights beside it.
        engine: `native`, `xcode` or `auto`; see `choose_engine`.

    Returns:
        the compiled model's path. An earlier one is replaced if it was made here or from the same
        package.

    Raises:
        InputError: no such package; weights that are not what the program refers to; something
            else stands at the place; the disk is full.
        CannotExecute: not an ML Program, or what our engine cannot write.
    """
    from verify.mil.package import read_model

    chosen = choose_engine(engine)
    model_file, model, content = read_model(package)
    target = out / f"{package.stem}.mlmodelc"
    _check_replaceable(target, content)
    try:
        with appearing(target, replacing=True) as new:
            if chosen == "xcode":
                xcode.compile_package(package, new.parent)
            else:
                _write(new, package.stem, model_file, model, content)
    except OSError as error:
        raise disk_error(error, target) from error
    except CannotExecute as error:
        raise CannotExecute(error.problem, where=error.where or package, hint=error.hint) from error
    return target


def _write(folder: Path, name: str, model_file: Path, model: Any, content: bytes) -> None:
    from verify.mil.blob import WeightFile

    (folder / "analytics").mkdir(parents=True)
    with (folder / "model.mil").open("w", encoding="utf-8", newline="\n") as text:
        blobs = write_program(model, text.write, BUILD_INFO)
    description = serialised_description(content)
    (folder / "coremldata.bin").write_bytes(coremldata(model, description))
    (folder / "analytics/coremldata.bin").write_bytes(analytics(content, model_file.stem))
    (folder / "metadata.json").write_text(metadata_json(model, name), "utf-8", newline="\n")
    for name, group in groupby(blobs, lambda blob: blob.file):
        relative = name.removeprefix("@model_path/")
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise CannotExecute(f"the program points outside: {name!r}")
        weights = WeightFile(model_file.parent / relative)
        for blob in group:
            weights.check(blob.offset, blob.dtype, blob.shape)
        link(weights.path.resolve(), folder / relative)


def _check_replaceable(target: Path, content: bytes) -> None:
    """Raises InputError if what is at `target` was made neither here nor of the same package."""
    if not target.exists() and not target.is_symlink():
        return
    digest = base64.b64encode(hashlib.sha256(content).digest())
    try:
        with (target / "model.mil").open("rb") as text:
            ours = f'"coremlc-component-MIL", "{COMPILER}"'.encode() in text.read(4096)
        ours = ours or digest in (target / "analytics/coremldata.bin").read_bytes()
    except OSError:
        ours = False
    if not ours:
        raise InputError(
            "exists already, and was made neither by sdxl-coreml nor of this package",
            where=target,
            hint="Give --out another folder, or delete it.",
        )
