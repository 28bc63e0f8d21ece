"""Many weights compared by several threads: what takes time lets go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from convert.errors import CannotExecute, InputError
from verify.weights.compare import WeightFault, compare_weight
from verify.weights.find import StoredWeight


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
    largest_first = sorted(range(len(weights)), key=lambda index: -weights[index].tensor.size)
    compare = partial(_compare, is_ours=is_ours)
    with _one_torch_thread():
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            compared = pool.map(compare, [weights[index] for index in largest_first])
            found = dict(zip(largest_first, compared, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    return [found[index] for index in range(len(weights))]


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
