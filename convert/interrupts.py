"""Ctrl-C and its kin: held back while libraries are imported, kept from workers, never a traceback.

Imports little: until this is loaded Ctrl-C ends in Python's own words.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has come; unwinds the program as KeyboardInterrupt does for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)  # the exit code that a shell gives
        self.signal = signal.Signals(number).name


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP until the block has ended.

    For imports of big libraries: coremltools, for one, swallows it in a bare `except`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    heeded = [n for n in (signal.SIGINT, *ENDING) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


@contextmanager
def orderly_ends() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program: workers end with it, and nothing is half made."""
    heeded = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    before = {number: signal.signal(number, _terminate) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started in the block, from their first moment on.

    One that arrives meanwhile reaches this process at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts() -> None:
    """Nothing is left to interrupt but Python's own end, which would answer with a traceback.

    Blocked as well: once Ctrl-C has ended an `exec`, Python ends itself by SIGINT, whatever exit
    code it is given.
    """
    numbers = (signal.SIGINT, *ENDING)
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
