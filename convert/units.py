"""Numbers for people."""

from __future__ import annotations

from collections.abc import Iterable


def size(bytes: float) -> str:
    """Decimal units, as download pages and Finder have them: `5.13 GB`, `624 kB`."""
    return _human(bytes, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "bytes")


def count(number: float) -> str:
    """`2.57 G`, `123 M`, `4.50 k`, `977`."""
    return _human(number, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def _human(number: float, units: Iterable[tuple[str, float]], one: str) -> str:
    for unit, scale in units:
        # 999.6 k would round to 1000 k
        if number >= 0.9995 * scale:
            value = number / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:.0f} {one}".rstrip()
