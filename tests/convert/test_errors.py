"""What an error tells its reader to do."""

from __future__ import annotations

import pickle

import pytest

from convert.errors import InputError

KNOWN = ["original", "split_einsum"]


@pytest.mark.parametrize(
    ("written", "hint"),
    [("split_einsm", "Did you mean `split_einsum`?"), ("zzz", "Choose one.")],
)
def test_an_error_asks_after_what_is_near_or_else_gives_its_hint(written: str, hint: str) -> None:
    error = InputError("unknown", hint="Choose one.", near=(written, KNOWN))
    assert error.hint == hint
    assert pickle.loads(pickle.dumps(error)).hint == hint


def test_how_it_asks_is_the_callers_affair() -> None:
    error = InputError("unknown", near=("orignal", KNOWN), suggest="did you mean {!r}?".format)
    assert str(error) == "unknown\ndid you mean 'original'?"
    assert InputError("unknown", near=("zzz", KNOWN)).hint is None
