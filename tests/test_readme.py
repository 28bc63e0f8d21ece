"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import convert
import release
import verify

README = Path(__file__).parents[1] / "README.md"
RECIPE = """
name = "mine"
source.path = "toy"
matrix = { attention = ["original"], resolution = ["64x64"] }
verify = { levels = ["structure"] }
"""


@pytest.mark.usefixtures("one_thread")
def test_the_python_example_runs(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"<!-- python -->\n```python\n(.*?)```", README.read_text("utf-8"), re.S)
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "my.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["outcome"].verdict == "pass"
    assert {check.component for check in names["results"].checks} == {"artifact", "unet"}
    assert {f.name for f in names["unet"].program.inputs} >= {"sample", "timestep"}
    assert names["picture"].size == (64, 64)
    assert [a.name for a in sorted((tmp_path / "release").glob("*.zip"))] == [
        "mine_original_16-bit_64x64.zip"
    ]


@pytest.mark.parametrize("package", [convert, verify, release], ids=lambda p: p.__name__)
def test_every_name_of_a_face_is_there(package: Any) -> None:
    assert package.__all__
    for name in package.__all__:
        assert callable(getattr(package, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
