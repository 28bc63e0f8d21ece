"""Embeddings in the reference: read, given ids and put into a text encoder by diffusers.

Its tokens are its own (`<mystyle>`, `<mystyle>_1`), and so are its ids, which are then called by
ours. So a word that our vocabulary spells wrongly, or a vector in another's place, shows as a
difference. Only what diffusers has no rows of, because no prompt reaches them or the embedding is
for the other text encoder, has our values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.configs import LEGACY_EOS
from convert.checkpoint.small_files import library_folder
from convert.checkpoint.tensors import Tensor as StoredValues
from convert.components import MAX_TOKENS
from convert.embedding.apply import TABLE
from convert.embedding.rows import Stacked
from convert.errors import InputError
from convert.files.json_files import reason
from convert.process.interrupts import require_uninterrupted
from convert.tokenizer.bpe import WORD_END


def how_added(checkpoint: Checkpoint) -> str:
    """How the reference gets its embeddings, in words; empty where there are none."""
    if not checkpoint.embeddings:
        return ""
    unread = {
        vectors.path.name
        for part in _encoders(checkpoint)
        for vectors in _own_vectors(checkpoint, part).values()
        if _library_values(vectors) is None
    }
    if not unread:
        return "the reference has its embeddings added by diffusers"
    return (
        f"the reference has the values of {', '.join(sorted(unread))} from this tool's reader, "
        "because the libraries cannot read them"
    )


class LibraryTokens:
    """A text encoder's tokenizer as diffusers leaves it, and whose token each of its new ids is.

    Args:
        model: the text encoder; it gets the rows.
        checkpoint: with the embeddings.
        part: the text encoder's name.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, part: str) -> None:
        from diffusers.loaders import TextualInversionLoaderMixin
        from transformers import CLIPTokenizer

        class Loader(TextualInversionLoaderMixin):
            hf_device_map = None
            components: Mapping[str, Any] = {}

        bare, name = checkpoint.bare, part.replace("text_encoder", "tokenizer")
        assert bare is not None
        self._loader = Loader()
        ours = checkpoint.tokenizers[name].ids
        self._ours: dict[int, int] = {}  # their id → our id of the same vector
        try:
            with library_folder(bare, name) as folder:
                self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            with torch.random.fork_rng():  # new rows are drawn before they are filled
                for number, vectors in _own_vectors(checkpoint, part).items():
                    words = checkpoint.embeddings[number].words
                    first = len(self.tokenizer)
                    values = _library_values(vectors)
                    if values is None:
                        values = torch.from_numpy(vectors.read(np.float32))
                    self._loader.load_textual_inversion(
                        values,
                        token=token(words[0]),
                        tokenizer=self.tokenizer,
                        text_encoder=model,
                    )
                    for place, word in enumerate(words):
                        self._ours[first + place] = ours[word + WORD_END]
        except (MemoryError, InputError):
            raise
        except Exception as error:  # of the libraries, which raise whatever they like
            require_uninterrupted()
            raise InputError(
                f"diffusers cannot add the embeddings to {part}: {reason(error)}",
                where=checkpoint.path,
            ) from error
        self._reorder(model, checkpoint, part)
        _find_the_end(model, checkpoint, part)

    def _reorder(self, model: Any, checkpoint: Checkpoint, part: str) -> None:
        """Put diffusers' rows where our ids have them, and our values where it has none."""
        table = checkpoint.parts[part].tensors[TABLE]
        assert isinstance(table, Stacked)
        layer = model.get_input_embeddings()
        theirs, known = layer.weight.data, table.parts[0].shape[0]
        added = [torch.from_numpy(each.read(np.float32)) for each in table.parts[1:]]
        rows = torch.cat([theirs[:known], *(values.to(theirs) for values in added)])
        for their_id, our_id in self._ours.items():
            rows[our_id] = theirs[their_id]
        layer.weight = torch.nn.Parameter(rows)
        layer.num_embeddings = model.config.vocab_size = len(rows)

    def ids(self, text: str) -> Tensor:
        """A text with diffusers' tokens, such as `a cat, <mystyle>`, in our ids: int64 [1, 77]."""
        converted = self._loader.maybe_convert_prompt(text, self.tokenizer)
        found: Tensor = self.tokenizer(
            converted,
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        return torch.tensor([[self._ours.get(int(n), int(n)) for n in found[0]]])


def token(word: str) -> str:
    """What diffusers is told to call an embedding; it adds `_1` and so on for more vectors."""
    return f"<{word}>"


def _encoders(checkpoint: Checkpoint) -> Sequence[str]:
    names = [name for one in checkpoint.embeddings for name in one.text_encoders]
    return list(dict.fromkeys(names))


def _own_vectors(checkpoint: Checkpoint, part: str) -> dict[int, StoredValues]:
    """The vectors that a text encoder has of embeddings, by the number of each embedding."""
    table = checkpoint.parts[part].tensors[TABLE]
    assert isinstance(table, Stacked)
    return {
        number: table.parts[1 + number]
        for number, one in enumerate(checkpoint.embeddings)
        if part in one.text_encoders
    }


def _library_values(vectors: StoredValues) -> Tensor | None:
    """The values as diffusers' own reader has them in the file; None if it cannot read it."""
    from diffusers.models.model_loading_utils import load_state_dict

    try:
        held = _flat(load_state_dict(vectors.path))
    except Exception:  # whatever the library says of a file that it does not take
        require_uninterrupted()
        return None
    same = [n for n in held if n == vectors.name or n.endswith(f".{vectors.name}")]
    return held[same[0]].detach().reshape(vectors.shape) if len(same) == 1 else None


def _flat(values: Any, place: str = "") -> dict[str, Tensor]:
    """The tensors in dictionaries in each other, by their names with dots between."""
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            found[f"{place}{name}"] = value
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{place}{name}.")
    return found


def _find_the_end(model: Any, checkpoint: Checkpoint, part: str) -> None:
    """The end of a text by its own id: the highest one, which old configs mean, is now a word's."""
    end = checkpoint.parts[part].config.get("eos_token_id")
    if end is None or end == LEGACY_EOS:
        return
    model.config.eos_token_id = end
    for module in model.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end
