"""The engines that make packages, and what one of them needs beside this tool."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

from convert.errors import InputError

Engine = Literal["native", "apple"]
ENGINES: tuple[Engine, ...] = ("native", "apple")
PACKAGE = "python_coreml_stable_diffusion"
INSTALL = "pip install --no-deps git+https://github.com/apple/ml-stable-diffusion@e12202c"


def require_engine(engine: Engine, components: Iterable[str], bits: Iterable[str]) -> None:
    """Refuse now what the engine would refuse after minutes.

    Args:
        components: that are asked for.
        bits: of the artifacts that are asked for.

    Raises:
        InputError: Apple's package is missing, or bits that its engine does not make.
    """
    if engine == "native":
        return
    for width in bits:
        if width != "16":
            raise not_in_bits(width)
    if "unet" in components and not _is_installed():
        raise not_installed()


def not_in_bits(bits: str) -> InputError:
    """Apple's engine makes no packages of these bits."""
    return InputError(
        f"Apple's engine makes 16-bit packages, not {bits}-bit ones",
        hint="Use `--engine native`, or `--bits 16`.",
    )


def not_installed() -> InputError:
    """Apple's package is not there."""
    return InputError(
        "Apple's converter is not installed; its engine needs it for the UNet",
        where=PACKAGE,
        hint=f"Install it beside this tool: {INSTALL}",
    )


def _is_installed() -> bool:
    try:
        return find_spec(PACKAGE) is not None
    except ValueError:  # imported already, in a way that leaves no trace of where from
        return True
