"""Whether a palette's indices are the nearest entries, told apart from how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

CODES = np.arange(1 << 16, dtype=np.uint16)
with np.errstate(invalid="ignore"):
    VALUES = CODES.view(np.float16).astype(np.float64)  # of every float16 code
# Standard deviations of its weights that an entry may be from their mean. Of 108 palettes of our
# converter for six kinds of weights, the farthest was at 0.02.
OFF_CENTRE = 0.05


@dataclass(frozen=True)
class Table:
    """A look-up table of float16 values, in whatever order.

    Attributes:
        entries: [2^bits] as float64, which is exact.
    """

    entries: np.ndarray

    @cached_property
    def nearest(self) -> np.ndarray:
        """The index of a nearest entry, uint8 [65536] by float16 code; of two, either."""
        order = np.argsort(self.entries, kind="stable")
        ascending = self.entries[order]
        middles = (ascending[:-1] + ascending[1:]) / 2
        return order[np.searchsorted(middles, VALUES)].astype(np.uint8)

    def is_as_near(
        self, codes: np.ndarray, indices: np.ndarray, *, were_exact: bool = False
    ) -> np.ndarray:
        """Whether these entries are as near as the nearest, elementwise: ties are no mistake.

        Args:
            were_exact: entries were compared before they were rounded to float16.
        """
        values, nearest = VALUES[codes], self.entries[self.nearest[codes]]
        found = self.entries[indices]
        allowed = np.abs(values - nearest)
        if were_exact:
            largest = np.maximum(np.abs(nearest), np.abs(found))
            allowed = allowed + np.spacing(largest.astype(np.float16))
        return np.abs(values - found) <= allowed

    def squared_error(self, counts: np.ndarray) -> float:
        """Σ (weight - entry)² of weights that are counted int64 [65536] by their codes."""
        present = np.flatnonzero(counts)
        difference = VALUES[present] - self.entries[self.nearest[present]]
        return float(np.sum(counts[present] * difference**2))

    def moved(self, counts: np.ndarray) -> Table:
        """The table with each entry at the mean of its weights: a step of Lloyd's algorithm."""
        present = np.flatnonzero(counts)
        nearest, times = self.nearest[present], counts[present]
        number = np.bincount(nearest, times, len(self.entries))
        total = np.bincount(nearest, times * VALUES[present], len(self.entries))
        return Table(np.where(number > 0, total / np.maximum(number, 1), self.entries))

    def least_central(self, counts: np.ndarray) -> OffCentre | None:
        """As the function, of weights that are counted int64 [65536] by their codes."""
        present = np.flatnonzero(counts)
        return least_central(
            self.entries[None], self.nearest[present][None], VALUES[present][None], counts[present]
        )


@dataclass(frozen=True)
class OffCentre:
    """An entry of a table that is not in the middle of the weights that it stands for."""

    table: int
    entry: int
    value: float
    mean: float


def least_central(
    tables: np.ndarray, indices: np.ndarray, values: np.ndarray, counts: np.ndarray | None = None
) -> OffCentre | None:
    """The entry that is farthest from the mean of its weights, if that is too far.

    A table with the least error has every entry in the middle of the weights that it stands for,
    but for its rounding to float16, and for what that moves across the borders.

    Args:
        tables: float64 [groups, 2^bits].
        indices: [groups, n], of the weights.
        values: float64 [groups, n], the weights.
        counts: [n], how often each is there; once if None.
    """
    groups, size = tables.shape
    cell = (indices.astype(np.intp) + np.arange(groups)[:, None] * size).reshape(-1)
    flat, times = values.reshape(-1), np.ones(values.size) if counts is None else counts
    number = np.bincount(cell, times, tables.size)
    at_least_one = np.maximum(number, 1)
    mean = np.bincount(cell, times * flat, tables.size) / at_least_one
    spread = np.bincount(cell, times * (flat - mean[cell]) ** 2, tables.size) / at_least_one
    entries = tables.reshape(-1)
    rounding = np.spacing(np.abs(entries).astype(np.float16)).astype(np.float64) / 2
    excess = np.abs(entries - mean) - 1.001 * rounding - OFF_CENTRE * np.sqrt(spread)
    excess[number == 0] = -np.inf
    excess[entries != entries.astype(np.float16)] = np.inf  # it is fitted to float16 values
    worst = int(np.argmax(excess))
    if excess[worst] <= 0:
        return None
    table, entry = divmod(worst, size)
    return OffCentre(table, entry, float(entries[worst]), float(mean[worst]))
