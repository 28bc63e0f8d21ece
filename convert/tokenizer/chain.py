"""Words that become one token by merges at the end of the list, in whatever reads merges.

BPE makes the merge that stands first in the list, so merges behind all others only join what these
leave of a word. A chain joins two neighbouring pieces and grows from there, a piece a merge. So all
that it can change are words whose own pieces hold those two beside each other. Which words these
are is found by trying all of the vocabulary, and a chain that would change one is not taken.

Source: apple/ml-stable-diffusion e12202c, tokenizer/BPETokenizer.swift.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise

from convert.tokenizer.bpe import WORD_END, merge

Merge = tuple[str, str]

MOST_PIECES = 32
SHOWN = 3  # words that are named
# What stands behind words in prompts. Apps that split at spaces alone see commas as a part of them.
ENDINGS = ("", ",", ".", "'s", "s", "es", "ed", "er", "ing", "ly", "y")


class UnfitError(ValueError):
    """A word cannot become a token of its own; says why."""


def ranks_of(pairs: Iterable[Merge]) -> dict[Merge, int]:
    """What BPE merges first; Apple's tokenizer leaves out what begins with `#`."""
    return {pair: rank for rank, pair in enumerate(pairs) if not pair[0].startswith("#")}


def pieces(word: str, ranks: Mapping[Merge, int]) -> list[str]:
    """A word in the pieces that Apple's tokenizer makes of it: it knows neither bytes nor regex."""
    found = [*word[:-1], word[-1] + WORD_END]
    while known := [pair for pair in pairwise(found) if pair in ranks]:
        found = merge(found, min(known, key=lambda pair: ranks[pair]))
    return found


class Speller:
    """A vocabulary and its merges, to which words are appended.

    Attributes:
        tokens: the vocabulary, and what appended merges have made.
        ranks: the merges with the appended ones, see `ranks_of`.
    """

    def __init__(self, vocabulary: Iterable[str], pairs: Iterable[Merge]) -> None:
        self._vocabulary = tuple(vocabulary)
        self.tokens = set(self._vocabulary)
        self.ranks = ranks_of(pairs)

    def append(self, word: str) -> tuple[Merge, ...]:
        """Append the merges that make one token of a word and change no other; returns them.

        Args:
            word: of the letters a to z.

        Raises:
            UnfitError: it is one token already, or any merges would change other words.
        """
        merges = self.chain(word)
        for a, b in merges:
            self.tokens.add(a + b)
            self.ranks[a, b] = self._next_rank
        return merges

    def chain(self, word: str) -> tuple[Merge, ...]:
        """What `append` would append, and its errors; nothing is changed."""
        parts = pieces(word, self.ranks)
        if len(parts) == 1 or word + WORD_END in self.tokens:
            raise UnfitError(f"`{word}` is a word of CLIP's vocabulary already")
        if len(parts) > MOST_PIECES:
            raise UnfitError(f"`{word}` has {len(parts)} pieces, more than {MOST_PIECES}")
        changed: dict[str, None] = {}
        pairs = list(pairwise(parts))
        for start in sorted(range(len(pairs)), key=lambda n: self._commonness(pairs[n])):
            pair = pairs[start]
            met = self._words_with(pair)
            changed |= dict.fromkeys(met)
            for merges in () if met else _orders(parts, start):
                if self._makes(merges, word):
                    return merges
        if not changed:
            raise UnfitError(f"`{word}` is of pieces that make other words' tokens")
        others = ", ".join(f"`{other}`" for other in list(changed)[:SHOWN])
        raise UnfitError(f"`{word}` as one token would change how {others} are read")

    @property
    def _next_rank(self) -> int:
        return max(self.ranks.values(), default=-1) + 1

    def _makes(self, merges: tuple[Merge, ...], word: str) -> bool:
        """Whether these merges make new tokens only, and at last the word's."""
        if any(a + b in self.tokens for a, b in merges):
            return False
        new = {pair: self._next_rank + number for number, pair in enumerate(merges)}
        return pieces(word, self.ranks | new) == [word + WORD_END]

    def _commonness(self, pair: Merge) -> tuple[int, int]:
        """How many entries have the letters where a pair meets: of its rarest three, then two.

        Of `unaestheticxl`, `tic` and `xl` meet in no word, where `un` and `aesthe` meet in one that
        the vocabulary does not have.
        """
        text, at = "".join(pair).removesuffix(WORD_END), len(pair[0])

        def rarest(length: int) -> int:
            starts = range(max(0, at - length + 1), min(at, len(text) - length + 1))
            return min((self._entries.count(text[n : n + length]) for n in starts), default=-1)

        three, two = rarest(3), rarest(2)
        return (two if three < 0 else three), two

    def _words_with(self, pair: Merge) -> list[str]:
        """Some of the words in whose pieces a pair stands; none if there are none."""
        text = "".join(pair)
        is_end = text.endswith(WORD_END)
        pattern = re.escape(text.removesuffix(WORD_END)) + ("\n" if is_end else "")
        found: dict[str, None] = {}
        for match in re.finditer(pattern, self._words):
            begin = self._words.rfind("\n", 0, match.start()) + 1
            word = self._words[begin : self._words.index("\n", match.start())]
            if pair in pairwise(pieces(word, self.ranks)):
                found[word] = None
                if len(found) == SHOWN:
                    break
        return list(found)

    @cached_property
    def _entries(self) -> str:
        """The vocabulary's entries without their ends, a line each."""
        entries = dict.fromkeys(token.removesuffix(WORD_END) for token in self._vocabulary)
        return "".join(f"{e}\n" for e in entries if e.isascii() and e.isprintable())

    @cached_property
    def _words(self) -> str:
        """The entries as words, by themselves and with endings, a line each."""
        stems = self._entries.splitlines()
        return "".join(f"{stem}{ending}\n" for stem in stems for ending in ENDINGS)


def _orders(parts: list[str], start: int) -> Iterator[tuple[Merge, ...]]:
    """Merges that begin with the pieces at `start` and the next: on to the right first, or left."""
    for right_first in (True, False):
        first, last = start, start + 1
        merges = [(parts[first], parts[last])]
        while last - first + 1 < len(parts):
            joined = "".join(parts[first : last + 1])
            if last + 1 < len(parts) and (right_first or not first):
                last += 1
                merges.append((joined, parts[last]))
            else:
                first -= 1
                merges.append((parts[first], joined))
        yield tuple(merges)
