"""Many weights compared, those of a large network by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from convert.errors import CannotExecute, InputError
from convert.process.progress import Advance, silent
from convert.run.pool import run_tasks
from verify.weights.compare import WeightFault, compare_weight
from verify.weights.find import StoredWeight

LARGE = 1 << 28  # weights, from which on processes of their own are worth their start
BATCHES = 32  # of weights, that processes are given one after another


@dataclass(frozen=True)
class Compared:
    """A weight, and what comparing it has shown.

    Attributes:
        unknown: why nothing can be said of it.
    """

    weight: StoredWeight
    deviation: WeightFault | None
    unknown: str = ""


@dataclass(frozen=True)
class _Batch:
    """What a process is given at once, by place among all."""

    weights: Mapping[int, StoredWeight]

    def __str__(self) -> str:
        first = next(iter(self.weights.values()))
        return f"{len(self.weights)} weights, the first `{first.tensor.name}`"


def compare_all(weights: Sequence[StoredWeight], *, is_ours: bool) -> list[Compared]:
    """Each of them as `compare_weight` has it, in their order.

    Raises:
        CannotExecute: a process was killed.
    """
    compare = partial(_compare, is_ours=is_ours)
    if sum(weight.tensor.size for weight in weights) < LARGE:
        return [*map(compare, weights)]
    order = sorted(range(len(weights)), key=lambda index: -weights[index].tensor.size)
    batches = [order[start::BATCHES] for start in range(min(BATCHES, len(order)))]
    tasks = [_Batch({index: weights[index] for index in batch}) for batch in batches]
    found: dict[int, Compared] = {}
    for _, batch in run_tasks(partial(_worker, compare), tasks, os.cpu_count() or 1, silent):
        found |= {index: Compared(weights[index], *shown) for index, shown in batch.items()}
    return [found[index] for index in range(len(weights))]


def _compare(weight: StoredWeight, *, is_ours: bool) -> Compared:
    try:
        return Compared(weight, compare_weight(weight, is_ours=is_ours))
    except NotImplementedError as error:
        return Compared(weight, None, str(error))
    except (CannotExecute, InputError) as error:
        text = f"unreadable: {error.problem}"
        return Compared(weight, WeightFault(weight.tensor.name, None, "a value", text))


def _worker(compare: Callable[[StoredWeight], Compared]) -> Any:
    """What a process does with a batch."""

    def work(batch: _Batch, _advance: Advance) -> dict[int, tuple[WeightFault | None, str]]:
        compared = {index: compare(weight) for index, weight in batch.weights.items()}
        return {index: (c.deviation, c.unknown) for index, c in compared.items()}

    return work
