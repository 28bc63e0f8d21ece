"""The mark of a release that a later run has not confirmed, so that nobody takes it for valid.

Its archives stay where they are: the next release keeps those that are still right.
"""

from __future__ import annotations

from pathlib import Path

from convert.errors import UserError

FILE = "STALE.txt"


class Stale(UserError):
    """A release that was marked (exit code 1)."""

    exit_code = 1


def require_current(release: Path) -> None:
    """Raise Stale if a release was marked."""
    if (release / FILE).is_file():
        raise Stale(
            f"is stale: a later run did not pass ({FILE} in it says more)",
            where=release,
            hint="Run its recipe again; `run --release-passing` releases what has passed.",
        )
