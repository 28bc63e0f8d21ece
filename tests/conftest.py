"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from convert.toy import write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy checkpoint; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    write_toy(folder)
    return folder


class _Shapes(Mapping[str, Path]):
    """The checkpoints of `checkpoints.SHAPES`, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        from checkpoints import SHAPES

        self._folder, self._arguments = folder, SHAPES

    def __getitem__(self, name: str) -> Path:
        from checkpoints import make_checkpoint

        path = self._folder / name
        return path if path.exists() else make_checkpoint(path, **self._arguments[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny SDXL checkpoints by the names of `checkpoints.SHAPES`; tests copy before they change."""
    return _Shapes(tmp_path_factory.mktemp("shapes"))
