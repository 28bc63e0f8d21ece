"""What is computed ahead: in order, with its errors, and no further than the next."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from convert.process.threads import ahead


def test_items_come_in_order_and_one_is_computed_ahead() -> None:
    begun = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    for number, item in enumerate(ahead(items())):
        assert item == number
        assert all(event.wait(10) for event in begun[: number + 2])
        assert not any(event.is_set() for event in begun[number + 2 :])
    assert number == 4


def test_an_error_is_raised_where_its_item_would_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="the second"):
        next(found)


def test_whoever_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    found = ahead(iter(range(1, 100)))
    assert next(found) == 1
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_products_take_one_thread_and_then_as_many_as_before() -> None:
    program = """
import numpy, threadpoolctl
from convert.process.threads import one_blas_thread
def threads(): return [lib["num_threads"] for lib in threadpoolctl.threadpool_info()]
before = threads()
with one_blas_thread(): assert set(threads()) <= {1}, threads()
assert threads() == before
"""  # a process that has loaded no BLAS but numpy's
    subprocess.run([sys.executable, "-c", program], check=True)
