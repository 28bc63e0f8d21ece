"""The models of an artifact's folder: in one order, and the package where there are both."""

from __future__ import annotations

from pathlib import Path

from convert.components import COMPONENTS
from verify.artifact.folder import models_by_component, models_in


def test_models_are_found_by_file_and_by_component(tmp_path: Path) -> None:
    for name in ("Another.mlpackage", "Unet.mlmodelc", "Unet.mlpackage", "TextEncoder.mlmodelc"):
        (tmp_path / name).mkdir()
    (tmp_path / "manifest.json").touch()
    found = models_by_component(tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "text_encoder": "TextEncoder.mlmodelc",
        "unet": "Unet.mlpackage",
    }
    assert list(found) == [name for name in COMPONENTS if name in found]
    names = [path.name for path in models_in(tmp_path)]
    assert names[-1] == "Another.mlpackage"
    assert sorted(names[:-1]) == ["TextEncoder.mlmodelc", "Unet.mlmodelc", "Unet.mlpackage"]


def test_a_folder_without_models_has_none(tmp_path: Path) -> None:
    assert models_by_component(tmp_path) == {}
    assert models_in(tmp_path) == []
