"""The words of an embedding, one a vector: letters a to z, each a token of its own in every app."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator

from convert.errors import InputError
from convert.tokenizer.chain import Merge, Speller, UnfitError

LONGEST = 40  # letters
NAMELESS = "embedding"  # where a file's name has no letters
# What makes a word of the vocabulary one that is not in it: rare at the end of words.
TAILS = ("x", "z", "q", "xz", "qx", "zq", "xqz", "zxq")
Words = dict[str, tuple[Merge, ...]]  # a word each vector, and the merges that make it


def spell(token: str | None, name: str, count: int, speller: Speller, where: object) -> Words:
    """The words of an embedding, which are appended to `speller`.

    The first is the token, the others have letters behind it: `mystyle mystyleb mystylec`.

    Args:
        token: as the user wants it; made of `name` if None.
        name: what the embedding calls itself, or its file.
        count: of vectors.
        speller: of the vocabulary, with the words of embeddings before this one.

    Raises:
        InputError: the token is no such word; says one that is.
    """
    if token is not None:
        problem = _problem(token, speller)
        if problem:
            near = next(_free(fitted(token), speller), None)
            hint = f"Write another, such as `{near}`." if near else "Write another word."
            problem = f"{problem}, so it cannot be an embedding's word"
            raise InputError(problem, where=where, hint=hint)
        first = token
    else:
        found = next(_free(fitted(name), speller), None)
        if found is None:
            raise InputError(
                f"no word like `{fitted(name)}` can be this embedding's",
                where=where,
                hint="Give it one of rare letters: `token` in a recipe, FILE=TOKEN as an option.",
            )
        first = found
    words: Words = {first: speller.append(first)}
    for word in _numbered(first):
        if len(words) == count:
            break
        try:
            words[word] = speller.append(word)
        except UnfitError:
            continue  # such as `cats`, of the trigger `cat`: the next letter will do
    return words


def fitted(name: str) -> str:
    """A name in the letters a to z alone.

    >>> fitted("unaestheticXL_v31"), fitted("<Möwe>")
    ('unaestheticxlv', 'mowe')
    """
    plain = unicodedata.normalize("NFKD", name).lower()
    return re.sub(r"[^a-z]", "", plain)[:LONGEST] or NAMELESS


def _problem(token: str, speller: Speller) -> str | None:
    """Why a token is no word for an embedding; None if it is one."""
    if not re.fullmatch(r"[a-z]+", token):
        return f"`{token}` has more than the letters a to z, and apps would read it as several"
    if len(token) > LONGEST:
        return f"`{token}` has {len(token)} letters, more than {LONGEST}"
    try:
        speller.chain(token)
    except UnfitError as error:
        return str(error)
    return None


def _free(word: str, speller: Speller) -> Iterator[str]:
    """The word, or some like it that can be an embedding's."""
    longest = LONGEST - max(map(len, TAILS))
    for candidate in (word, *(word[:longest] + tail for tail in TAILS)):
        if _problem(candidate, speller) is None:
            yield candidate


def _numbered(first: str) -> Iterator[str]:
    """`mystyleb`, `mystylec`, … `mystylez`, `mystylebb`, `mystylebc` and on."""
    letters = string.ascii_lowercase[1:]
    endings = [""]
    while True:
        endings = [ending + letter for ending in endings for letter in letters]
        yield from (first + ending for ending in endings)
