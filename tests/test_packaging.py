"""What is installed is complete: every room and every data file of the packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
HALLS = ("convert", "verify", "release", "recipes", "sdxl_coreml")


def test_the_wheel_holds_every_file_of_the_product(tmp_path: Path) -> None:
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *HALLS]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {name for name in listed.splitlines() if (ROOT / name).is_file()}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = tmp_path / "source"  # building leaves folders behind
    for name in (*wanted, "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "--wheel-dir", tmp_path, copy], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted
