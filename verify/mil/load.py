"""A program from its files, whichever of the two forms they have."""

from __future__ import annotations

from pathlib import Path

from verify.mil.program import Program


def load_program(path: str | Path) -> Program:
    """Read a `.mlpackage` (or a bare `.mlmodel`) or a `.mlmodelc` that holds an ML Program.

    Weights stay on disk.

    Raises:
        InputError: there is no such package or compiled model.
        CannotExecute: it is not a readable ML Program with one function.
    """
    path = Path(path)
    if path.suffix == ".mlmodelc":
        from verify.mil.compiled import load_compiled

        return load_compiled(path)
    from verify.mil.package import load_package

    return load_package(path)
