"""Many weights compared by several threads: what takes time lets go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from convert.errors import CannotExecute, InputError
from verify.weights.compare import WeightFault, compare_weight
from verify.weights.find import StoredWeight

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Compared:
    """A weight, and what comparing it has shown.

    Attributes:
        unknown: why nothing can be said of it.
    """

    weight: StoredWeight
    deviation: WeightFault | None
    unknown: str = ""


def compare_all(weights: Sequence[StoredWeight], *, is_ours: bool) -> list[Compared]:
    """Each of them as `compare_weight` has it, in their order."""
    sizes = [weight.tensor.size for weight in weights]
    return in_threads(partial(_compare, is_ours=is_ours), weights, sizes)


def in_threads(do: Callable[[T], R], items: Sequence[T], sizes: Sequence[int]) -> list[R]:
    """What `do` makes of each item, in their order; the largest first, on all cores.

    Torch computes in the threads that call it meanwhile.
    """
    largest_first = sorted(range(len(items)), key=lambda index: -sizes[index])
    with _one_torch_thread():
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            made = pool.map(do, [items[index] for index in largest_first])
            found = dict(zip(largest_first, made, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    return [found[index] for index in range(len(items))]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Within it, torch computes in the threads that call it, and they start none of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(weight: StoredWeight, *, is_ours: bool) -> Compared:
    try:
        return Compared(weight, compare_weight(weight, is_ours=is_ours))
    except NotImplementedError as error:
        return Compared(weight, None, str(error))
    except (CannotExecute, InputError) as error:
        text = f"unreadable: {error.problem}"
        return Compared(weight, WeightFault(weight.tensor.name, None, "a value", text))
