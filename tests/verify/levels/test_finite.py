"""Weights that are not finite are found, and a file that several artifacts hold is read once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.files.cache import Cache
from convert.package.mlpackage import WEIGHTS
from tests.support.checkpoints import write_component
from verify.levels.finite import broken_weight
from verify.mil import load_program


def test_a_file_that_packages_share_is_read_once_until_it_changes(
    base: Checkpoint, tmp_path: Path
) -> None:
    first = write_component(tmp_path / "a.mlpackage", base, "unet")
    second = tmp_path / "b.mlpackage"
    shutil.copytree(first, second)
    (second / WEIGHTS).unlink()
    (second / WEIGHTS).hardlink_to(first / WEIGHTS)
    read: list[Path] = []
    with Cache(tmp_path / "cache") as cache:

        def remember(file: Path, question: Any, answer: Callable[[], str]) -> str:
            def counted() -> str:
                read.append(file)
                return answer()

            return cache.told(file, question, counted)

        programs = [load_program(package) for package in (first, second)]
        assert [broken_weight(program, remember) for program in programs] == ["", ""]
        assert len(read) == 1
        tensor = base.component_tensors("unet")["conv_out.weight"].read(np.float16)
        data = bytearray((first / WEIGHTS).read_bytes())
        at = data.index(tensor.tobytes())
        data[at : at + 2] = np.float16("-inf").tobytes()
        with (first / WEIGHTS).open("r+b") as file:  # the same inode
            file.write(data)
        for package in (first, second):
            problem = broken_weight(load_program(package), remember)
            assert problem == "conv_out_weight[0, 0, 0, 0] is -inf"
        assert len(read) == 2
