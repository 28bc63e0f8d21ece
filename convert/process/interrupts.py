"""Ctrl-C and its kin: held back while libraries are imported, kept from workers, never a traceback.

Imports little: until this is loaded Ctrl-C ends in Python's own words.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
AGAIN_AFTER = 0.01  # seconds
_came: list[int] = []  # the signals that have been raised as exceptions


class Interrupted(KeyboardInterrupt):
    """Ctrl-C has come.

    A class of its own: once KeyboardInterrupt itself has ended an `exec`, and be it caught, Python
    ends itself by SIGINT, whatever exit code it is given.
    """

    signal = "SIGINT"


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
    """Let Ctrl-C, SIGTERM and SIGHUP unwind the program: workers end, and nothing is half made.

    Where Python drops an exception, as in what it calls while it collects garbage or lets go of
    the lock of an import, it is raised again a moment later.
    """
    default = (signal.SIG_DFL, signal.default_int_handler)
    heeded = [n for n in (signal.SIGINT, *ENDING) if signal.getsignal(n) in default]
    before = {number: signal.signal(number, _raise) for number in heeded}
    hook = sys.unraisablehook

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, Interrupted | Terminated):
            number = signal.Signals[what.exc_value.signal]
            again = threading.Timer(AGAIN_AFTER, _thread.interrupt_main, (number,))
            again.daemon = True
            again.start()
        else:
            hook(what)

    sys.unraisablehook = dropped
    _came.clear()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def require_uninterrupted() -> None:
    """Raise again what has come, if a library has made an error of its own of it.

    Compiled code that calls Python may drop what is raised there and report something else; it is
    called where errors of libraries are turned into ours.
    """
    if _came:
        _raise(_came[-1], None)


def _raise(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if number == signal.SIGINT:
        raise Interrupted
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
    """Nothing is left to interrupt but Python's own end, which would answer with a traceback."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
