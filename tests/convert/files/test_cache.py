"""The cache: entries whole or absent, damage noticed, several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.files.cache import Cache, key_of
from convert.files.disk import digest_file

KEY = key_of({"a": 1})


def fill(folder: Path) -> dict[str, int]:
    (folder / "data").write_text("content")
    return {"n": 1}


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("made again")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        path, facts = cache.entry("k", KEY, fill)
        assert (facts, (path / "data").read_text()) == ({"n": 1}, "content")
    with Cache(tmp_path) as cache:
        assert cache.entry("k", KEY, never) == (path, {"n": 1})


@pytest.mark.parametrize("damage", ["gone", "shorter", "same size"])
def test_damage_is_noticed_and_mended(tmp_path: Path, damage: str) -> None:
    with Cache(tmp_path) as cache:
        path, _ = cache.entry("k", KEY, fill)
        time.sleep(0.01)
        if damage == "gone":
            (path / "data").unlink()
        else:
            (path / "data").write_text("conten" if damage == "shorter" else "CONTENT")
        assert not cache.has("k", KEY)
        cache.entry("k", KEY, fill)
        assert (path / "data").read_text() == "content"


def test_a_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    with Cache(tmp_path) as cache:
        with pytest.raises(ValueError):  # noqa: PT011
            cache.entry("k", KEY, fail)
        assert not cache.has("k", KEY)
    assert not list(tmp_path.rglob("half"))


def _hang(root: Path) -> None:
    with Cache(root) as cache:
        cache.entry("k", KEY, lambda folder: time.sleep(60) or {})


def test_a_killed_process_blocks_nobody_and_its_workspace_goes(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hang, args=(tmp_path,))
    process.start()
    while not list(tmp_path.glob("tmp/*-*/1")):
        time.sleep(0.02)
    with Cache(tmp_path) as cache:  # it lives, so its workspace stays
        assert len(list(tmp_path.glob("tmp/*-*/1"))) == 1
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        cache.entry("k", KEY, fill)
    assert not list(tmp_path.glob("tmp/*-*"))


def _count(root: Path, made: Any) -> None:
    def slow(folder: Path) -> dict[str, int]:
        made.release()
        time.sleep(0.3)
        return fill(folder)

    with Cache(root) as cache:
        cache.entry("k", KEY, slow)


def test_of_two_processes_one_makes_the_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    made = context.Semaphore(0)
    processes = [context.Process(target=_count, args=(tmp_path, made)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert made.acquire(block=False)
    assert not made.acquire(block=False)


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 1000)
    read: list[int] = []
    with Cache(tmp_path / "cache") as cache:
        assert cache.digests([file], read.append) == {file: digest_file(file)}
        cache.digests([file], read.append)
        assert sum(read) == 1000
        file.write_bytes(b"y" * 1000)
        os.utime(file, ns=(1, 1))
        assert cache.digests([file], read.append) == {file: digest_file(file)}
        assert sum(read) == 2000


def test_a_file_written_over_with_its_old_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "detail.safetensors"
    file.write_bytes(b"x" * 1000)
    before = file.stat()
    with Cache(tmp_path / "cache") as cache:
        first = cache.digests([file])
        time.sleep(0.02)  # the clocks of file systems tick in hundredths of seconds
        file.write_bytes(b"y" * 1000)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` does
        assert cache.digests([file]) != first


def test_what_is_known_of_a_file_is_known_of_its_links_until_it_changes(tmp_path: Path) -> None:
    file, link = tmp_path / "f", tmp_path / "link"
    file.write_bytes(b"x" * 1000)
    link.hardlink_to(file)
    asked: list[str] = []

    def answer(text: str) -> Callable[[], str]:
        return lambda: asked.append(text) or text

    with Cache(tmp_path / "cache") as cache:
        assert cache.told(file, ["finite", 1], answer("yes")) == "yes"
        assert cache.told(link, ["finite", 1], answer("no")) == "yes"
        assert cache.told(link, ["finite", 2], answer("another question")) == "another question"
        time.sleep(0.02)
        link.write_bytes(b"y" * 1000)
        assert cache.told(file, ["finite", 1], answer("changed")) == "changed"
    assert asked == ["yes", "another question", "changed"]


def test_text_is_replaced_without_a_trace(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        for text in ("one", "two"):
            cache.write_text(tmp_path / "out" / "r.json", text)
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [("r.json", "two")]


def test_a_discarded_entry_is_made_again(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        path, _ = cache.entry("kind", "key", lambda folder: {"number": 1})
        cache.discard("kind", "key")
        assert not path.exists()
        assert not cache.has("kind", "key")
        cache.discard("kind", "key")
        _, facts = cache.entry("kind", "key", lambda folder: {"number": 2})
        assert facts == {"number": 2}
