"""What is written appears complete or not at all, and what killed writers leave goes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convert.errors import InputError
from convert.files.appearing import appearing, appearing_folder

WRITER = """
import sys, time
from pathlib import Path
from convert.files.appearing import appearing
with appearing(Path(sys.argv[1])) as new:
    new.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(new: Path, error: BaseException) -> None:
    """Write half of it, and then fail."""
    new.write_text("half")
    raise error


def writer(path: Path) -> subprocess.Popen[str]:
    """A process that has begun to write `path` and does not come to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_file_appears_at_the_end_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in ("one", "two"):
        with appearing(path) as new:
            new.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_appears_of_what_fails(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), appearing(tmp_path / "file") as new:
        fail(new, error())
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_folder_gives_way_only_if_it_may(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with appearing(tmp_path / "folder") as new:  # an empty one does
        new.mkdir()
        (new / "a").touch()
    with pytest.raises(OSError, match="not empty"), appearing(tmp_path / "folder") as new:
        new.mkdir()
    assert names(tmp_path / "folder") == ["a"]
    with appearing(tmp_path / "folder", replacing=True) as new:
        new.mkdir()
        (new / "b").touch()
    assert names(tmp_path / "folder") == ["b"]
    assert names(tmp_path) == ["folder"]


def test_a_living_writer_is_left_alone_and_a_killed_one_swept(tmp_path: Path) -> None:
    process = writer(tmp_path / "file")
    with appearing(tmp_path / "file") as new:
        new.write_text("whole")
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "file").read_text() == "whole"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()
    with appearing(tmp_path / "file") as new:
        new.write_text("again")
    assert names(tmp_path) == ["file"]


def test_folders_that_people_name_are_new(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), appearing_folder(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="exists and is not empty"), appearing_folder(tmp_path):
        pass
    full = pytest.raises(InputError, match="cannot be written: No space")
    with full, appearing_folder(tmp_path / "new") as new:
        fail(new, OSError(28, "No space left on device"))
    assert names(tmp_path) == ["file"]
