"""The one place that prints: results on stdout, everything else on stderr.

Colours and moving progress appear only on a terminal; elsewhere a stage is a line at its end, and
one every ten seconds while it lasts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from convert.process.progress import Advance, Say, silent
from convert.units import size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_EVERY = 10.0  # seconds, where there is no terminal to draw on


class Terminal:
    """Where a command speaks; also the `Progress` that long work reports to.

    Args:
        quiet: only results and errors.
        as_json: the result is one JSON document on stdout.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json

    def result(self, document: Any, shown: RenderableType | None = None) -> None:
        """The command's result: `document` as JSON, or else `shown` for people."""
        if self.as_json:
            text = json.dumps(document, indent=2, ensure_ascii=False)
            if not _can_show(sys.stdout, text):
                text = json.dumps(document, indent=2)
            sys.stdout.write(text + "\n")
        elif shown is not None:
            _console(sys.stdout).print(shown, markup=False, highlight=False, soft_wrap=True)

    def say(self, shown: RenderableType) -> None:
        """Something a person at the terminal wants to know; not part of the result."""
        if not self.quiet:
            _console(sys.stderr).print(shown, markup=False, highlight=False, soft_wrap=True)

    done = say

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a stage of work while it lasts; see `convert.process.progress.Progress`."""
        if self.quiet or total == 0:
            yield lambda count: None
        elif _console(sys.stderr).is_terminal:
            with _bar(name, total, unit) as advance:
                yield advance
        else:
            with _lines(name, total, unit) as advance:
                yield advance

    @contextmanager
    def working(self, name: str) -> Iterator[Say]:
        """Show what is being done while work of unknown length lasts."""
        if self.quiet:
            yield silent
        elif _console(sys.stderr).is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            spinner = SpinnerColumn("dots" if _can_show(sys.stderr, "⠋") else "line")
            columns = (spinner, TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=_console(sys.stderr), transient=True) as progress:
                task = progress.add_task(name, total=None)
                yield lambda text: progress.update(task, description=f"{name} {text}")
        else:
            last = time.monotonic()

            def say(text: str) -> None:
                nonlocal last
                if time.monotonic() - last >= LINE_EVERY:
                    last = time.monotonic()
                    print(f"{name} {text}", file=sys.stderr, flush=True)

            yield say


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _console(stream: Any) -> Console:
    from rich.console import Console

    # What is not a terminal has no width; tables in a log should not be cut to 80 columns.
    return Console(file=stream, width=None if stream.isatty() else 160)


@contextmanager
def _bar(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{unit}, {task.speed:.2g}/s" if task.speed else unit)

    measure = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(), Rate())
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *measure, TimeRemainingColumn())
    with Progress(*columns, console=_console(sys.stderr), transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _lines(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            left = f", {(total - done) * (now - start) / done:.0f} s left" if total and done else ""
            of = f" of {_amount(total, unit)}" if total else ""
            line = f"{name}: {_amount(done, unit)}{of}, {_rate(done, now - start, unit)}{left}"
            print(line, file=sys.stderr, flush=True)

    yield advance
    seconds = time.monotonic() - start
    if seconds >= 2:
        rate = f", {_rate(done, seconds, unit)}" if done else ""
        print(f"{name}: done in {seconds:.0f} s{rate}", file=sys.stderr, flush=True)


def _amount(count: int, unit: str) -> str:
    return size(count) if unit == "B" else f"{count} {unit}"


def _rate(count: int, seconds: float, unit: str) -> str:
    if unit == "B":
        return f"{size(count / max(seconds, 1e-9))}/s"
    return f"{count / max(seconds, 1e-9):.2g} {unit}/s"
