"""Worker processes: results and errors come back whole, a killed worker is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convert.errors import CannotExecute, InputError
from convert.process import libraries
from convert.run.pool import run_tasks


def start() -> Callable[[int, Callable[[int], None]], Any]:
    def task(item: int, advance: Callable[[int], None]) -> tuple[int, int]:
        advance(item)
        if item == 100:
            raise InputError("bad item", where="here", hint="give another")
        if item == 200:
            raise RuntimeError("boom")
        if item == 300:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item, os.getpid()

    return task


def test_every_item_is_done_once_by_all_workers() -> None:
    done: list[int] = []
    results = dict(run_tasks(start, list(range(20)), 2, done.append))
    assert {item: square for item, (square, _) in results.items()} == {n: n * n for n in range(20)}
    assert len({pid for _, pid in results.values()}) == 2
    assert sum(done) == sum(range(20))


def test_an_error_arrives_as_it_was_raised() -> None:
    with pytest.raises(InputError) as caught:
        list(run_tasks(start, [1, 100], 1, lambda count: None))
    error = caught.value
    assert (error.problem, error.where, error.hint) == ("bad item", "here", "give another")


def test_a_mistake_of_ours_names_itself() -> None:
    with pytest.raises(CannotExecute, match="RuntimeError: boom"):
        list(run_tasks(start, [200], 1, lambda count: None))


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(CannotExecute, match="ended with code -9"):
        list(run_tasks(start, [300, 1, 2], 2, lambda count: None))


@dataclass
class Large:
    """More than a pipe holds, as the headers of a checkpoint are; may kill whoever unpickles it."""

    signal: int = 0
    content: bytes = bytes(1 << 20)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.signal:
            os.kill(os.getpid(), self.signal)

    def __call__(self) -> Any:
        return start()


def test_what_workers_are_given_may_be_larger_than_a_pipe_holds() -> None:
    assert {item for item, _ in run_tasks(Large(), [1, 2, 3], 2, lambda count: None)} == {1, 2, 3}


@pytest.mark.parametrize("moment", ["at its start", "in its imports", "in a task"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_may_die_at_any_moment(
    moment: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items, begin = [1, 2, 3], Large()
    if moment == "at its start":  # before Python can be told anything
        dying = tmp_path / "python"
        dying.write_text("#!/bin/sh\nkill -9 $$\n")
        dying.chmod(0o755)
        monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(dying))
    elif moment == "in its imports":
        begin = Large(signal.SIGKILL)
    else:
        items = [300, 1, 2]
    began = time.monotonic()
    with pytest.raises(CannotExecute, match="ended with code -9"):
        list(run_tasks(begin, items, count, lambda count: None))
    assert time.monotonic() - began < 10


def start_asking() -> Callable[[int, Callable[[int], None]], bool]:
    return lambda item, advance: libraries.are_libraries_silent()


@pytest.mark.parametrize("silent", [True, False])
def test_libraries_speak_in_a_worker_as_in_its_parent(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "_silenced", silent)
    assert list(run_tasks(start_asking, [1], 1, lambda count: None)) == [(1, silent)]


def script(tmp_path: Path, *, wait: bool = False) -> str:
    (tmp_path / "tasks.py").write_text(
        textwrap.dedent(f"""
            import os, time

            def start():
                return task

            def task(item, advance):
                advance(os.getpid())
                time.sleep({600 if wait else 0})
                return item * item
            """)
    )
    return textwrap.dedent("""
        import tasks
        from convert.run.pool import run_tasks

        if __name__ == "__main__":
            show = lambda pid: print(pid, flush=True)
            print(sorted(run_tasks(tasks.start, [2, 3], 2, show)))
        """)


def run(tmp_path: Path, *options: str, **others: Any) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **others,
    )


def test_a_script_may_be_read_from_standard_input_and_warnings_be_errors(tmp_path: Path) -> None:
    text = script(tmp_path)
    process = run(tmp_path, "-W", "error", "-", stdin=subprocess.PIPE)
    out, err = process.communicate(text, timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "[(2, 4), (3, 9)]"


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_their_parent(number: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script(tmp_path, wait=True))
    process = run(tmp_path, "script.py")
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    process.wait(timeout=60)  # not for ever, however busy the machine is
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
