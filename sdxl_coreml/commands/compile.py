"""The command `compile`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from convert.units import size
from sdxl_coreml.options import JsonOption, Quiet, out_option
from sdxl_coreml.terminal import Terminal


def compile(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or one .mlpackage.")],
    out: Annotated[Path, out_option("Where the .mlmodelc go.", "DIR")],
    engine: Annotated[
        str, typer.Option(help="native, xcode (on a Mac), or auto: Xcode's where it is installed.")
    ] = "auto",
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Compile packages to .mlmodelc folders, on any system; `pack` makes the bundle that apps load.

    A bundle is more than its models: tokenizer, manifest, and names that some apps ask for.

    Example: sdxl-coreml compile out/toy_original_16-bit_128x128 --out compiled
    """
    from release.compile.mlmodelc import choose_engine, compile_package, find_packages

    terminal = Terminal(quiet=quiet, as_json=as_json)
    packages, chosen = find_packages(path), choose_engine(engine)
    compiled = []
    with terminal.stage("Compiling", len(packages), "packages") as advance:
        for package in packages:
            compiled.append(compile_package(package, out, engine=chosen))
            advance(1)
    sizes = [sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in compiled]
    terminal.result(
        {
            "schema": 1,
            "engine": chosen,
            "models": [
                {"package": str(package), "path": str(model), "bytes": count}
                for package, model, count in zip(packages, compiled, sizes, strict=True)
            ],
        },
        "\n".join(f"{m}: {size(n)}" for m, n in zip(compiled, sizes, strict=True)),
    )
    if path.suffix != ".mlpackage":
        words = shlex.join(["sdxl-coreml", "pack", str(path), "--out", "release"])
        terminal.say(f"These are models alone; apps load the bundle that this makes: {words}")
