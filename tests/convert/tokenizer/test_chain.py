"""Words that become one token: in Apple's rules, in transformers, and no other word with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.known.vocabulary import known_tokenizer, tokenizer_documents
from convert.tokenizer.chain import Speller, UnfitError, pieces, ranks_of
from convert.tokenizer.clip import Tokenizer
from verify.reference.reference import quiet

# Of 2, 3 and 4 pieces of CLIP's own; the last begins as the first does.
WORDS = ("mystyle", "unaestheticxl", "negativexl", "mystyleb")
FIRST = 49408
Ids = Callable[[Sequence[str]], list[list[int]]]


def with_words(words: Sequence[str]) -> Tokenizer:
    """CLIP's tokenizer with words appended."""
    plain, speller = PLAIN, Speller(IDS, PLAIN.pairs)
    merges = [merge for word in words for merge in speller.append(word)]
    own = [f"{word}</w>" for word in words]
    between = [a + b for a, b in merges if a + b not in own]
    ids = plain.ids | {token: FIRST + n for n, token in enumerate([*own, *between])}
    text = plain.merges + "".join(f"{a} {b}\n" for a, b in merges)
    return replace(plain, vocab=json.dumps(ids), merges=text)


@cache
def extended() -> Tokenizer:
    return with_words(WORDS)


def swift(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Apple's Swift package on one word."""
    ids, ranks = tokenizer.ids, ranks_of(tokenizer.pairs)
    end = ids["<|endoftext|>"]
    return lambda word: [ids.get(piece, end) for piece in pieces(word, ranks)]


PLAIN = known_tokenizer("tokenizer")
BEFORE, IDS, RANKS = swift(PLAIN), PLAIN.ids, ranks_of(PLAIN.pairs)
SPELLER = Speller(IDS, PLAIN.pairs)


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_2"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """transformers' tokenizer before and after, with the settings of each of SDXL's two."""
    found = []
    for tokenizer in (known_tokenizer(request.param), extended()):
        folder = tmp_path_factory.mktemp("tokenizer")
        for name, text in tokenizer_documents(request.param).items():
            (folder / Path(name).name).write_text(text, "utf-8")
        (folder / "vocab.json").write_text(tokenizer.vocab, "utf-8")
        (folder / "merges.txt").write_text(tokenizer.merges, "utf-8")
        found.append(loaded(folder))
    return tuple(found)


def loaded(folder: Path) -> Ids:
    from transformers import CLIPTokenizer

    with quiet():
        found = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda texts: found(list(texts), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_one_token_for_apple_s_package(word: str) -> None:
    assert swift(extended())(word) == [FIRST + WORDS.index(word)]
    assert len(BEFORE(word)) > 1


def test_a_word_is_one_token_for_transformers_even_beside_commas(library: tuple) -> None:
    before, after = library
    assert after(WORDS) == [[FIRST + n] for n in range(len(WORDS))]
    (ids,) = after(["MyStyle, a cat (negativexl)"])
    (plain,) = before(["MyStyle, a cat (negativexl)"])
    assert [n for n in ids if n >= FIRST] == [FIRST, FIRST + 2]
    assert [n for n in ids if n < FIRST] == [n for n in plain if n in ids]


def test_the_whole_vocabulary_is_read_as_before(library: tuple) -> None:
    before, after = library
    words = [token.removesuffix("</w>") for token in IDS]
    for ending in ("", "s"):  # one text, because whole batches take seconds
        texts = [" ".join(word + ending for word in words)]
        assert after(texts) == before(texts)


def test_the_whole_vocabulary_is_read_as_before_by_apple_s_rules() -> None:
    after = swift(extended())
    for token in [*IDS][::3]:
        word = token.removesuffix("</w>") + ","
        assert after(word) == BEFORE(word)


def test_no_other_prompt_changes(library: tuple) -> None:
    before, after = library
    words = [token.removesuffix("</w>") for token in IDS if token.isascii()]
    letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)

    @given(st.lists(st.one_of(st.sampled_from(words), letters), max_size=12), st.booleans())
    def prompts(parts: list[str], spaces: bool) -> None:
        prompt = (" " if spaces else "").join(parts)
        if not any(word[:4] in prompt.lower() for word in WORDS):
            assert after([prompt]) == before([prompt])

    prompts()


@settings(deadline=None)  # the first example makes the list of words
@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=14))
def test_any_letters_become_a_token_or_are_refused(word: str) -> None:
    try:
        merges = SPELLER.chain(word)
    except UnfitError:
        return
    assert len(merges) == len(BEFORE(word)) - 1
    after = RANKS | {pair: len(RANKS) + n for n, pair in enumerate(merges)}
    assert pieces(word, after) == [f"{word}</w>"]
    assert not {a + b for a, b in merges} & IDS.keys()


def test_a_word_whose_pieces_others_have_is_refused_and_says_which() -> None:
    with pytest.raises(UnfitError, match="`acneg` as one token would change how `acne,`"):
        SPELLER.chain("acneg")


@pytest.mark.parametrize("word", ["cat", "pixelart", "ohwx"])
def test_a_word_of_the_vocabulary_is_refused(word: str) -> None:
    with pytest.raises(UnfitError, match=f"`{word}` is a word of CLIP's vocabulary already"):
        SPELLER.chain(word)


def test_pieces_that_others_share_are_joined_last() -> None:
    """`abc` begins with the first two of `abcd`, so a chain has to begin at the other end."""
    speller = Speller(["a", "b", "ab", "c", "c</w>", "d", "d</w>", "abc"], [("a", "b")])
    assert speller.chain("abcd") == (("c", "d</w>"), ("ab", "cd</w>"))
