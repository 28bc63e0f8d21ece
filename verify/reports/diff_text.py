"""A comparison of two results as a terminal table and as Markdown."""

from __future__ import annotations

from typing import Any

from verify.reports.diff import Change, Diff

SHOWN = 20  # changes for the better, which nobody has to act on


def headline(diff: Diff) -> str:
    """The verdict and the counts in one line."""
    better = sum(c.kind == "number" and not c.worse for c in diff.changes)
    return (
        f"{diff.verdict}: {diff.compared} checks compared, {len(diff.worse)} changes for the worse"
        f", {better} numbers better"
    )


def table(diff: Diff) -> Any:
    """A table for the terminal: a row for each change, the worse ones first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    view = Table("", "change", "where", "old", "new", box=None, pad_edge=False)
    changes, left = _shown(diff)
    for change in changes:
        style = "bold red" if change.worse else "dim"
        view.add_row(*(Text(cell, style) for cell in _cells(change)))
    parts: list[Any] = [view] if changes else []
    if left:
        parts.append(Text(f"… and {left} more that are not worse", "dim"))
    return Group(*parts, Text(headline(diff), "green" if diff else "bold red"))


def markdown(diff: Diff) -> str:
    """A summary for a CI job's page."""
    changes, left = _shown(diff)
    lines = [f"### {'✓' if diff else '✗'} {headline(diff)}", ""]
    if changes:
        lines += ["| | change | where | old | new |", "|---|---|---|---|---|"]
    for change in changes:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in _cells(change)]
        lines.append(f"| {' | '.join(cells)} |")
    if left:
        lines += ["", f"… and {left} more that are not worse"]
    return "\n".join(lines).rstrip() + "\n"


def _shown(diff: Diff) -> tuple[list[Change], int]:
    good = [c for c in diff.changes if not c.worse]
    return [*diff.worse, *good[:SHOWN]], len(good[SHOWN:])


def _cells(change: Change) -> tuple[str, ...]:
    return "✗" if change.worse else "·", change.kind, change.place, change.old, change.new
