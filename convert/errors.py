"""The errors that users see: what is wrong, where, and what to do about it.

Library code raises one of these; only the command layer (`sdxl_coreml.py`) prints them and turns
them into an exit code. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """Something the user can act on.

    Args:
        problem: what is wrong, one sentence, with the offending value.
        where: the file, key or component it concerns.
        hint: what to do about it.
        near: what was written, and what is known; where one of these was probably meant, the hint
            asks for it instead.
        suggest: how the hint asks.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        hint: str | None = None,
        near: tuple[str, Sequence[str]] | None = None,
        suggest: Callable[[str], str] = "Did you mean `{}`?".format,
    ) -> None:
        meant = nearest(*near) if near else None
        self.problem = problem
        self.where = None if where is None else str(where)
        self.hint = hint if meant is None else suggest(meant)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:  # errors come from worker processes, too
        return _rebuild, (type(self), self.problem, self.where, self.hint)

    def __str__(self) -> str:
        text = self.problem if self.where is None else f"{self.where}: {self.problem}"
        return text if self.hint is None else f"{text}\n{self.hint}"


def _rebuild(kind: type[UserError], problem: str, where: str | None, hint: str | None) -> UserError:
    return kind(problem, where=where, hint=hint)


class InputError(UserError):
    """A recipe, option, checkpoint or file that cannot be used (exit code 2)."""


class CannotExecute(UserError):
    """A model that cannot be run: an unsupported op or kind of model (exit code 4)."""

    exit_code = 4


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None.

    >>> nearest("split_einsm", ["original", "split_einsum"])
    'split_einsum'
    """
    import difflib

    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None
