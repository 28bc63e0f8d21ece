"""Standard output and error that end no work: closed, full, or unable to show a character.

What cannot be shown is replaced. What cannot be written is lost, but the work goes on, and the
exit code says so at its end.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

# What our texts hold beyond ASCII, in plain signs; anything else becomes a question mark.
PLAIN = {
    "✓": "+", "✗": "x", "×": "x", "–": "-", "—": "-", "−": "-", "·": "-", "•": "*", "…": "...",
    "≥": ">=", "≤": "<=", "≈": "~", "±": "+-", "∞": "inf", "²": "2", "→": "->", "‖": "||",
    "“": '"', "”": '"', "‘": "'", "’": "'",
}  # fmt: skip
NOBODY_READS = {errno.EPIPE, errno.EIO}  # `| head` has seen enough; the terminal was closed


class Stream(io.TextIOBase):
    """A standard stream. It has no `buffer`, which libraries would write to behind its back.

    Args:
        stream: Python's own; None if it was closed before Python started.
        name: what an error calls it.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream, self._name = stream or _nowhere(), name
        self._error: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                shown = text.encode(self.encoding, "sdxl-coreml.plain").decode(self.encoding)
                self._stream.write(shown)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def lost(self) -> str | None:
        """Why not all could be written, if somebody was there to read it; else None."""
        self.flush()
        if self._error is None or self._error.errno in NOBODY_READS:
            return None
        why = self._error.strerror or str(self._error)
        return f"{self._name}: {why}\nThe work is done; what it had to say is not all there."

    def _give_up(self, error: OSError) -> None:
        self._error = self._error or error
        try:
            # What waits in the buffer goes nowhere, or Python would fail on it again at its end.
            with _nowhere() as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except OSError:  # no file of the system's
            self._stream = _nowhere()


@contextmanager
def standard_streams() -> Iterator[tuple[Stream, Stream]]:
    """Put a `Stream` in the place of `sys.stdout` and of `sys.stderr` while the block lasts."""
    _open_missing()
    before = sys.stdout, sys.stderr
    streams = Stream(sys.stdout, "stdout"), Stream(sys.stderr, "stderr")
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


def _open_missing() -> None:
    """Nothing else may get a standard stream's number: libraries and workers write to these."""
    for number in range(3):
        try:
            if not os.get_blocking(number):  # some parents leave it so; `write` would fail on it
                os.set_blocking(number, True)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(_sign(sign) for sign in signs), error.end


def _sign(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte of a file's name that is no text
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return PLAIN.get(sign, "?")


codecs.register_error("sdxl-coreml.plain", _plain)
