"""Numbers for people."""

from __future__ import annotations


def size(count: float) -> str:
    """A number of bytes for people, in decimal units: `5.14 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
