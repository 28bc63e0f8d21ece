"""Components, sizes and lists in running text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from convert.components import COMPONENTS
from convert.values import Resolution

# Components that people speak of as one where both are meant.
_PAIRS: dict[tuple[str, ...], str] = {
    ("text_encoder", "text_encoder_2"): "the text encoders",
    ("vae_decoder", "vae_encoder"): "the VAE",
}


def component_phrases(components: Iterable[str]) -> list[str]:
    """Components as they are called in a sentence, pairs as one, in the pipeline's order."""
    left, found = set(components), []
    for name in COMPONENTS:
        if name not in left:
            continue
        pair = next((p for p in _PAIRS if name in p and left.issuperset(p)), (name,))
        left.difference_update(pair)
        found.append(_PAIRS.get(pair, with_article(name)))
    return found


def with_article(component: str) -> str:
    """`the UNet`, `text encoder 2`; what is no component stays as it is."""
    if component not in COMPONENTS:
        return component
    label = COMPONENTS[component].label
    text = label if label[1].isupper() else label[0].lower() + label[1:]
    return text if text[-1].isdigit() else f"the {text}"


def names(components: Iterable[str]) -> str:
    """`the text encoders, the UNet and the VAE`."""
    return joined(component_phrases(components))


def size_text(resolution: Resolution | None) -> str:
    """`832 × 1216`."""
    return str(resolution).replace("x", " × ")


def joined(parts: Sequence[str], last: str = " and ") -> str:
    """`a, b and c`."""
    return last.join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
