"""Worker processes: results and errors come back whole, a killed worker is noticed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from convert.errors import CannotExecute, InputError
from convert.pool import run_tasks


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
