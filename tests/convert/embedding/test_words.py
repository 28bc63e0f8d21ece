"""An embedding's words: letters a to z, one a vector, each a token of its own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.embedding.words import fitted, spell
from convert.errors import InputError
from convert.known.vocabulary import known_tokenizer
from convert.tokenizer.chain import Speller, pieces

PLAIN = known_tokenizer("tokenizer")
TOKENS, PAIRS = [*PLAIN.ids], PLAIN.pairs


@pytest.fixture
def speller() -> Speller:
    return Speller(TOKENS, PAIRS)


def test_every_vector_has_a_word(speller: Speller) -> None:
    assert [*spell("mystyle", "x", 3, speller, "f")] == ["mystyle", "mystyleb", "mystylec"]
    many = spell(None, "Möbius_XL v2", 75, speller, "f")
    assert len(many) == 75
    assert next(iter(many)) == "mobiusxlv"
    for word in [*many, "mystyleb"]:
        assert pieces(word, speller.ranks) == [f"{word}</w>"]


@pytest.mark.parametrize(
    ("token", "problem", "near"),
    [
        ("mystyle2", "more than the letters a to z", "mystyle"),
        ("MyStyle", "more than the letters a to z", "mystyle"),
        ("my style", "more than the letters a to z", "mystyle"),
        ("<mystyle>", "more than the letters a to z", "mystyle"),
        ("möwe", "more than the letters a to z", "mowe"),
        ("", "more than the letters a to z", "embedding"),
        ("cat", "`cat` is a word of CLIP's vocabulary already", "catx"),
        ("sks", "`sks` is a word of CLIP's vocabulary already", "sksx"),
        ("acneg", "would change how `acne,`", "acnegx"),
        ("z" * 41, "has 41 letters, more than 40", "zzz"),
    ],
)
def test_what_is_no_such_word_is_refused_with_one_that_is(
    token: str, problem: str, near: str, speller: Speller
) -> None:
    with pytest.raises(InputError) as caught:
        spell(token, "x", 1, speller, "style.pt")
    assert problem in caught.value.problem
    assert caught.value.where == "style.pt"
    found = re.search(r"such as `(\w+)`", caught.value.hint or "")
    assert found is not None
    assert found[1].startswith(near)
    assert spell(found[1], "x", 1, speller, "style.pt")  # and it is one


def test_a_file_s_name_is_made_fit(speller: Speller) -> None:
    assert [*spell(None, "cat", 1, speller, "f")] == ["catx"]
    assert [*spell(None, "123", 1, speller, "f")] == ["embedding"]
    assert [*spell(None, "cat", 1, speller, "f")] == ["catz"]  # `catx` is taken now


@given(st.text(max_size=60))
def test_any_name_is_made_letters(name: str) -> None:
    assert re.fullmatch("[a-z]{1,40}", fitted(name))
