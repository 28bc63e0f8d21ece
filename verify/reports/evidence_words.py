"""The words of a report's `evidence`: for each component what was done and found right.

`weights` and `graph` are the levels of these names; `numbers 320x448` are outputs compared with
PyTorch's at that size, `numbers` those of a text encoder, which has none; `t=999 1024x1024` is one
timestep of the UNet and `run 1024x1024` one run of the VAE at a true size, with `of ARTIFACT` where
that was another artifact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.documents import is_local
from convert.values import Resolution

EvidenceKind = Literal["weights", "graph", "numbers", "step", "run"]

_WORD = re.compile(
    r"(?P<plain>weights|graph|numbers)"
    r"|numbers (?P<numbers>\S+)"
    r"|(?:t=(?P<timestep>0|[1-9][0-9]{0,5})|(?P<run>run)) (?P<size>\S+)(?: of (?P<artifact>.+))?"
)
WRITTEN = (
    "weights, graph, numbers, numbers WIDTHxHEIGHT, t=N WIDTHxHEIGHT or run WIDTHxHEIGHT, the last "
    "two with `of ARTIFACT` where it was another"
)


@dataclass(frozen=True)
class EvidenceWord:
    """One thing that was done to one component.

    Attributes:
        kind: `step` is one timestep of the UNet, `run` one run of a model that has no timesteps.
        size: at which the component was executed; None of weights, graphs and text encoders.
        timestep: of a step.
        artifact: which was executed, where that was another one.
    """

    kind: EvidenceKind
    size: Resolution | None = None
    timestep: int | None = None
    artifact: str | None = None

    def __str__(self) -> str:
        name = f"t={self.timestep}" if self.kind == "step" else self.kind
        size = f" {self.size}" if self.size else ""
        return f"{name}{size}" + (f" of {self.artifact}" if self.artifact else "")


def parse_word(text: str) -> EvidenceWord:
    """The word that is written so; raises ValueError, with what is allowed, for anything else."""
    match = _WORD.fullmatch(text)
    size = match and (match["numbers"] or match["size"])
    artifact = match and match["artifact"]
    try:
        resolution = Resolution.parse(size) if size else None
    except InputError:
        match = None
    if match is None or (artifact and not is_local(artifact)):
        raise ValueError(WRITTEN)
    kind: EvidenceKind = "step" if match["timestep"] else "run" if match["run"] else "numbers"
    if match["plain"] in ("weights", "graph"):
        kind = "weights" if match["plain"] == "weights" else "graph"
    timestep = None if match["timestep"] is None else int(match["timestep"])
    return EvidenceWord(kind, resolution, timestep, artifact)


def require_fitting(component: str, words: Iterable[str]) -> None:
    """Raise ValueError for words that cannot be of the component: a size of what has none."""
    spec = COMPONENTS.get(component)
    if spec is None:
        raise ValueError(f"one of {', '.join(COMPONENTS)} for each key, not {component}")
    for word in map(parse_word, words):
        sized = word.kind not in ("weights", "graph")
        fits = (word.size is not None) == (sized and spec.has_resolution)
        if word.kind in ("step", "run"):
            fits &= (word.kind == "step") == (spec.kind == "unet")
        if not fits:
            raise ValueError(f"what fits each component, not {word} of {component}")


def _written(text: str) -> str:
    return str(parse_word(text))


def _fitting(evidence: dict[str, list[str]]) -> dict[str, list[str]]:
    for component, words in evidence.items():
        require_fitting(component, words)
    return evidence


# As saved documents have them.
EvidenceText = Annotated[str, AfterValidator(_written)]
SavedEvidence = Annotated[dict[str, list[EvidenceText]], AfterValidator(_fitting)]
