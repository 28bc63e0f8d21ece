"""vocab.json and merges.txt as an artifact has them: the checkpoint's, and its trained tokens.

Apple's Swift package, and so MochiDiffusion and Swift Core ML Diffusers, know a token only as the
end of a chain of merges. Where a trained token's word falls into two pieces, one merge more makes
it of them, and only of words that end in it. More pieces would need tokens in between, which the
text encoders have no embeddings of; those of embeddings that are added do
(`convert.embedding.apply`), and are in the vocabulary itself. Guernika reads trained tokens from
`added_vocab.json` inside of a compiled text encoder, so `release.pack.bundle` puts them there.

Sources: apple/ml-stable-diffusion e12202c, tokenizer/BPETokenizer.swift; GuernikaKit 922f0c0,
Tokenizer/BPETokenizer.swift.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from convert.tokenizer.chain import Merge, pieces, ranks_of
from convert.tokenizer.clip import Tokenizer

ADDED_VOCAB = "added_vocab.json"


def app_files(tokenizers: Mapping[str, Tokenizer]) -> dict[str, str]:
    """The text of `vocab.json` and `merges.txt`, which apps read for both text encoders."""
    first = next(iter(tokenizers.values()))
    made = chained(tokenizers)
    if not made:
        return {"vocab.json": first.vocab, "merges.txt": first.merges}
    ids = {token.content: token.id for token in first.added}
    new = {"".join(pair): ids[content] for content, pair in made.items()}
    return {
        "vocab.json": json.dumps({**first.ids, **new}, ensure_ascii=False),
        "merges.txt": first.merges + "".join(f"{a} {b}\n" for a, b in made.values()),
    }


def chained(tokenizers: Mapping[str, Tokenizer]) -> dict[str, Merge]:
    """The trained tokens that one merge makes, and that merge.

    Every text encoder must have the token, and with the same id.
    """
    first, *others = tokenizers.values()
    common = [
        token
        for token in first.added
        if all((token.content, token.id) in {(t.content, t.id) for t in o.added} for o in others)
    ]
    if not common:
        return {}
    vocab = first.ids
    ranks = ranks_of(first.pairs)
    made: dict[str, Merge] = {}
    for token in common:
        word = token.content.lower()  # apps lower prompts, and split them at spaces
        found_in_lower = token.normalized or word == token.content
        if not found_in_lower or not word.isascii() or not word.isprintable() or " " in word:
            continue
        parts = pieces(word, ranks)
        if len(parts) == 2 and "".join(parts) not in vocab and parts[0] in vocab:
            pair = (parts[0], parts[1])
            made[token.content] = pair
            ranks[pair] = len(first.pairs) + len(made)
    return made


def added_vocab(tokens: list[Mapping[str, object]]) -> str:
    """Guernika's `added_vocab.json`, from a manifest's added tokens."""
    return json.dumps({str(t["content"]): t["id"] for t in tokens}, ensure_ascii=False) + "\n"
