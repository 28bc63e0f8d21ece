"""Xcode's own compiler of models, where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from convert.errors import CannotExecute


def is_available() -> bool:
    """Whether `xcrun coremlcompiler` is installed."""
    if sys.platform != "darwin":
        return False
    try:
        found = subprocess.run(["xcrun", "--find", "coremlcompiler"], capture_output=True)
    except OSError:
        return False
    return found.returncode == 0


def compile_package(package: Path, out: Path) -> Path:
    """Compile a package into the folder `out`.

    Raises:
        CannotExecute: the compiler fails, in its own words.
    """
    command = ["xcrun", "coremlcompiler", "compile", str(package), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    compiled = out / f"{package.stem}.mlmodelc"
    if done.returncode or not compiled.is_dir():
        said = (done.stderr or done.stdout).strip()
        raise CannotExecute(
            f"coremlcompiler failed: {said}",
            where=package,
            hint="`--engine native` compiles without it.",
        )
    return compiled
