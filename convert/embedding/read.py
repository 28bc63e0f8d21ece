"""A file of textual inversions: how many vectors it has for which text encoder, whoever wrote it.

Sources: kohya-ss/sd-scripts (`sdxl_train_textual_inversion.py`), diffusers (`loaders/
textual_inversion.py`, `examples/textual_inversion`), ComfyUI (`comfy/sd1_clip.py`, `load_embed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint.tensors import Tensor
from convert.checkpoint.weights import read_weights, tensor_names
from convert.errors import InputError
from convert.files.dtypes import FLOATS
from convert.lora.suffixes import split

MOST_VECTORS = 75  # tokens of a prompt between start and end
BUNDLED = "bundle_emb."  # of an embedding inside a LoRA file
# key → the text encoder that its vectors are for; "" where it is not said
KEYS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",  # of older pivotal tuning
    "text_encoders_1": "text_encoder_2",
    "emb_params": "",
    "string_to_param.*": "",
    "*": "",  # the same of a pickle that holds nothing else
}
OTHER_FAMILIES = ("t5xxl", "t5", "qwen", "llama", "gemma")  # text encoders of other models
FACTS = ("ss_output_name", "ss_base_model_version", "modelspec.architecture", "modelspec.title")
# What a family's one text encoder has of columns.
WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text encoder",
    2048: "Stable Diffusion 3 or Flux",
    4096: "Stable Diffusion 3 or Flux",
}


@dataclass(frozen=True)
class Inversion:
    """The vectors of one textual inversion, [vectors, width] for each text encoder."""

    name: str  # its own, or its file's
    vectors: Mapping[str, Tensor]  # by text encoder; "" for one that the file does not name

    @property
    def count(self) -> int:
        """How many vectors a text encoder gets."""
        return max(tensor.shape[0] for tensor in self.vectors.values())

    @property
    def family(self) -> str:
        """What it is for, as far as the file tells."""
        if "" not in self.vectors:
            return "SDXL"
        width = self.vectors[""].shape[1]
        return WIDTHS.get(width, f"a text encoder {width} wide")


@dataclass(frozen=True)
class EmbeddingFile:
    """What a file holds; nothing but headers has been read."""

    path: Path
    inversions: tuple[Inversion, ...]
    facts: Mapping[str, str] = field(default_factory=dict)  # of the metadata, those of FACTS

    def to_json(self) -> dict[str, Any]:
        """What it is, without a checkpoint that it could be for."""
        return {
            "schema": 1,
            "what": "embedding",
            "embeddings": [
                {
                    "name": found.name,
                    "family": found.family,
                    "vectors": found.count,
                    "text_encoders": {
                        part or "one": list(tensor.shape) for part, tensor in found.vectors.items()
                    },
                }
                for found in self.inversions
            ],
            "metadata": dict(self.facts),
        }

    def line(self) -> str:
        """The same for people, a line for each embedding."""
        lines = []
        for found in self.inversions:
            vectors = "1 vector" if found.count == 1 else f"{found.count} vectors"
            parts = ", ".join(
                f"{part or 'one text encoder'} {tensor.shape[1]} wide"
                for part, tensor in found.vectors.items()
            )
            lines.append(f"embedding `{found.name}` for {found.family}: {vectors}; {parts}")
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.facts.items())])


def holds_embedding(path: Path) -> bool:
    """Whether a file is one of textual inversions, and no LoRA that has some inside."""
    keys = tensor_names(path)
    if len(keys) == 1:
        return split(*keys) is None
    return bool(keys) and all(key in KEYS for key in keys)


def read_embedding(path: Path) -> EmbeddingFile:
    """Read a file of textual inversions in any of the spellings that we know.

    Raises:
        InputError: none is in it, vectors of other shapes, or what is in it is for another family.
    """
    file = read_weights(path)
    found: dict[str, dict[str, Tensor]] = {}
    others = []
    for key, tensor in file.tensors.items():
        name, inner = _bundled(key) if key.startswith(BUNDLED) else (path.stem, key)
        if inner in OTHER_FAMILIES:
            raise InputError(
                f"is an embedding for another family: `{key}` is of a text encoder that SDXL lacks",
                where=path,
            )
        side = KEYS.get(inner)
        if side is None:
            others.append(key)
        elif found.setdefault(name, {}).setdefault(side, tensor) is not tensor:
            raise InputError(f"has vectors of `{name}` for one text encoder twice", where=path)
    is_lora = any((parts := split(key)) and parts[1] != ".weight" for key in others)
    if not found and not is_lora and _are_tokens(file.tensors):  # diffusers' {token: vectors}
        found = {token: {"": tensor} for token, tensor in file.tensors.items()}
        others = []
    if not found or (others and not is_lora):
        raise _no_embedding(path, others, is_lora=is_lora)
    inversions = tuple(
        Inversion(name, {side: _matrix(tensor, path) for side, tensor in sides.items()})
        for name, sides in found.items()
    )
    for inversion in inversions:
        _require_counts(inversion, path)
    facts = {name: file.metadata[name] for name in FACTS if name in file.metadata}
    return EmbeddingFile(path, inversions, facts)


def read_both(path: Path) -> EmbeddingFile:
    """As `read_embedding`, with the second file that diffusers' script for SDXL writes beside it.

    Of `learned_embeds.safetensors` that is `learned_embeds_2.safetensors`; either may be given.
    """
    given = read_embedding(path)
    stem = path.stem.removesuffix("_2")
    if not stem or not _is_half(given):
        return given
    first, second = path.with_stem(stem), path.with_stem(f"{stem}_2")
    if not (first.is_file() and second.is_file()):
        return given
    sides = []
    for file in (first, second):
        read = given if file == path else read_embedding(file)
        if not _is_half(read):
            return given
        sides.append(read.inversions[0])
    if sides[0].count != sides[1].count:
        return given
    vectors = {"text_encoder": sides[0].vectors[""], "text_encoder_2": sides[1].vectors[""]}
    return EmbeddingFile(first, (Inversion(sides[0].name, vectors),), given.facts)


def _is_half(file: EmbeddingFile) -> bool:
    """Whether a file has vectors for one text encoder, and does not say for which."""
    return [list(found.vectors) for found in file.inversions] == [[""]]


def _bundled(key: str) -> tuple[str, str]:
    """The name of an embedding inside a LoRA, which may hold dots, and the key of its tensor."""
    rest = key.removeprefix(BUNDLED)
    for inner in KEYS:
        if rest.endswith(f".{inner}") and inner != "*":
            return rest.removesuffix(f".{inner}"), inner
    name, _, inner = rest.partition(".")
    return name, inner


def _are_tokens(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are vectors by their tokens: one, or several that are spelled as such."""
    if any(not tensor.shape or len(_rows(tensor)) != 2 for tensor in tensors.values()):
        return False
    return len(tensors) == 1 or all(name.startswith("<") for name in tensors)


def _matrix(tensor: Tensor, path: Path) -> Tensor:
    """The vectors as [vectors, width]."""
    shape = _rows(tensor)
    if len(shape) != 2 or not math.prod(shape):
        problem = f"tensor `{tensor.name}` has the shape {list(tensor.shape)}, no vectors"
        raise InputError(problem, where=path, hint="An embedding's are [vectors, width].")
    if tensor.dtype not in FLOATS:
        raise InputError(f"tensor `{tensor.name}` is of {tensor.dtype}, no vectors", where=path)
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _rows(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape; that of a single vector, or within one more axis, as [vectors, width]."""
    shape = tensor.shape
    is_wrapped = len(shape) == 1 or (len(shape) == 3 and shape[0] == 1)
    return (math.prod(shape[:-1]), shape[-1]) if is_wrapped else shape


def _require_counts(inversion: Inversion, path: Path) -> None:
    counts = {tensor.shape[0] for tensor in inversion.vectors.values()}
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise InputError(
            f"has {numbers} vectors of `{inversion.name}` for the two text encoders",
            where=path,
            hint="Both read the same words, so each needs as many; the file is damaged or odd.",
        )
    if inversion.count > MOST_VECTORS:
        raise InputError(
            f"`{inversion.name}` has {inversion.count} vectors; a prompt has room for "
            f"{MOST_VECTORS} tokens",
            where=path,
        )


def _no_embedding(path: Path, others: list[str], *, is_lora: bool) -> InputError:
    if is_lora:
        return InputError(
            "is a LoRA without an embedding inside, not an embedding",
            where=path,
            hint="Give it as a LoRA: `loras` in a recipe, --lora as an option.",
        )
    some = ", ".join(f"`{key}`" for key in others[:2])
    held = f"it has tensors such as {some}" if some else "it has no tensors"
    return InputError(
        f"is no embedding (textual inversion): {held}",
        where=path,
        hint="An embedding for SDXL holds `clip_l` and `clip_g`.",
    )
