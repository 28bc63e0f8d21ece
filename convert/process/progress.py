"""How work reports on itself: stages with a measure, and finished things. Who shows it, decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]  # is told how much has been done since it was last told
Say = Callable[[str], None]  # is told in a few words what is being done


def silent(told: object) -> None:
    """Tells nobody."""


class Progress(Protocol):
    """Where long work reports."""

    def stage(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """A stage of `total` units: "B" for bytes, or a noun. None if the total is unknown."""

    def done(self, text: str) -> None:
        """One thing is finished, worth a line."""


class Silent:
    """Reports to nobody."""

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        """No stage is shown."""
        yield silent

    def done(self, text: str) -> None:
        """Nothing is said."""
        pass
