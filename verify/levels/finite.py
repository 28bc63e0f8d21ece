"""Whether a program's weights are there and finite; weight files that are one are read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import are_finite
from convert.errors import CannotExecute, InputError
from convert.process.code import code_digest
from verify.mil import Constant, Program
from verify.mil.blob import SUB_BYTE_BITS

# A file, what is asked of its content (JSON), and how that is found → the answer.
Remember = Callable[[Path, Any, Callable[[], str]], str]


def find_out(_file: Path, _question: Any, answer: Callable[[], str]) -> str:
    """Remembers nothing."""
    return answer()


def broken_weight(program: Program, remember: Remember = find_out) -> str:
    """The first weight that cannot be read or is not finite, or nothing."""
    stored: dict[Path | None, dict[str, Constant]] = {None: {}}
    for name, constant in program.constants():
        place = None if constant.file is None else constant.file.path
        stored.setdefault(place, {})[name] = constant
    for file, constants in stored.items():
        if file is None or not file.is_file():
            problem = _broken(constants)
        else:
            places = [[n, c.offset, c.type.dtype, c.type.shape] for n, c in constants.items()]
            question = ["finite", code_digest("measure"), places]
            problem = remember(file, question, partial(_broken, constants))
        if problem:
            return problem
    return ""


def _broken(constants: Mapping[str, Constant]) -> str:
    """The first of these that cannot be read or is not finite, or nothing."""
    for name, constant in constants.items():
        try:
            if constant.file is not None and constant.type.dtype in SUB_BYTE_BITS:
                constant.file.check(constant.offset, constant.type.dtype, constant.type.shape)
                continue
            array = constant.array()
        except (CannotExecute, InputError) as error:
            file = f"{Path(error.where).name}: " if error.where else ""
            return f"{name}: {file}{error.problem}"
        if array.dtype.kind != "f":
            continue
        if not are_finite(array):
            index = np.unravel_index(int(np.argmax(~np.isfinite(array))), array.shape)
            return f"{name}{[int(i) for i in index]} is {array[index]}"
    return ""
