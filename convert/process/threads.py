"""Threads: fewer for numpy's products of matrices, one more for what is computed ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it, products of matrices take one thread.

    Those of a LoRA are small: more threads wait for each other for longer than they compute, a
    hundred times so where other processes work beside them. And the sums are the same on machines
    with more cores.
    """
    return _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, none of them None, each computed while the one before it is used.

    What computing raises is raised where the item would come. Whoever stops early waits for the
    item that is being computed.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
