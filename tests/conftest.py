"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.toy import write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy checkpoint; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    write_toy(folder)
    return folder
