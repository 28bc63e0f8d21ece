"""A program from its files, whichever of the two forms they have."""

from __future__ import annotations

from pathlib import Path

from verify.mil.program import Functions, Program


def load_functions(path: str | Path) -> Functions:
    """Read a `.mlpackage` (or a bare `.mlmodel`) or a `.mlmodelc` that holds an ML Program.

    Weights stay on disk.

    Raises:
        InputError: there is no such package or compiled model.
        CannotExecute: it is not a readable ML Program.
    """
    path = Path(path)
    if path.suffix == ".mlmodelc":
        from verify.mil.compiled import compiled_functions

        return compiled_functions(path)
    from verify.mil.package import package_functions

    return package_functions(path)


def load_program(path: str | Path, function: str | None = None) -> Program:
    """One function of the ML Program in a package or compiled model, as `load_functions` reads it.

    Args:
        function: its name; None for the only one.

    Raises:
        InputError: there is no such package, compiled model or function.
        CannotExecute: it is not a readable ML Program, or has several functions and none is named.
    """
    return load_functions(path).one(function)
