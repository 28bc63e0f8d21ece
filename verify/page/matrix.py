"""The grid of a run's page: attention and bits across, resolutions down, artifacts in its cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from convert.components import COMPONENTS
from convert.values import ATTENTIONS, Verdict
from verify.judge.checks import worst
from verify.page import words
from verify.reports import figures
from verify.reports.evidence import HowVerified, how_verified, meanings
from verify.reports.figures import Json

_SEVERITY: tuple[Verdict, ...] = ("fail", "indeterminate", "pass")
WIDE = 7  # columns
_APART = r"[-_. ]*"  # what a name has between its parts


@dataclass(frozen=True)
class Entry:
    """An artifact in its cell.

    Attributes:
        snr: its lowest, and of the program alone where `of_program`.
        at: the size that it was measured at: the artifact's own is "", of a model without a size it
            is None.
        problem: what did not pass first; nothing where all did.
        evidence: how it was verified, in a few words and in a sentence.
    """

    artifact: str
    link: str
    verdict: Verdict
    snr: str
    of_program: bool
    at: str | None
    problem: str
    evidence: str
    sentence: str


@dataclass(frozen=True)
class Cell:
    """A place of the grid: one artifact, or none, or as many as are alike in all three.

    starts: whether it is the first of its attention.
    """

    entries: list[Entry]
    starts: bool

    @property
    def verdict(self) -> Verdict:
        """The worst in it."""
        return worst(entry.verdict for entry in self.entries)


@dataclass(frozen=True)
class Grid:
    """The artifacts that are of one checkpoint and one name.

    Attributes:
        columns: (attention, its bits), as headings.
        rows: (resolution, a cell for each of these bits).
    """

    name: str
    source: str
    verdict: Verdict
    count: int
    columns: list[tuple[str, list[str]]]
    rows: list[tuple[str, list[Cell]]]

    @property
    def is_wide(self) -> bool:
        """Whether it takes more room than text."""
        return sum(len(bits) for _, bits in self.columns) > WIDE


def grids(documents: Sequence[Json]) -> list[Grid]:
    """A grid for each checkpoint and name, those with failures first."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for document in documents:
        groups.setdefault((document["source"], _stem(document)), []).append(document)
    if len(groups) == len(documents):  # names that say something else than these three
        groups = {}
        for document in documents:
            groups.setdefault((document["source"], ""), []).append(document)
    found = [_grid(name or source, source, of) for (source, name), of in groups.items()]
    return sorted(found, key=lambda grid: _SEVERITY.index(grid.verdict))


def failed_first(documents: Iterable[Json]) -> list[Json]:
    """The documents by verdict, otherwise in their order."""
    return sorted(documents, key=lambda document: _SEVERITY.index(document["verdict"]))


def legend(documents: Sequence[Json]) -> list[tuple[str, int, str]]:
    """(evidence in a few words, of how many artifacts, what that means); empty where nothing is
    said of any."""
    if not any(document.get("evidence") for document in documents):
        return []
    how = [how_verified(document) for document in documents]
    return [
        (short, sum(h.short == short for h in how), meaning)
        for short, meaning in meanings(how).items()
    ]


def _grid(name: str, source: str, documents: Sequence[Json]) -> Grid:
    bits_of: dict[str, list[str]] = {}
    for attention in sorted({_attention(d) for d in documents}, key=_place):
        bits = {_bits(d) for d in documents if _attention(d) == attention}
        bits_of[attention] = sorted(bits, key=_width, reverse=True)
    places = [(attention, bits) for attention, every in bits_of.items() for bits in every]
    starts = [bits == bits_of[attention][0] for attention, bits in places]
    cells: dict[tuple[str, str, str], list[Entry]] = {}
    for document in documents:
        key = (_size(document), _attention(document), _bits(document))
        cells.setdefault(key, []).append(_entry(document))
    sizes = dict.fromkeys(_size(d) for d in documents)
    return Grid(
        name,
        source,
        worst(d["verdict"] for d in documents),
        len(documents),
        [(attention, [_bits_text(b) for b in every]) for attention, every in bits_of.items()],
        [
            (
                words.size(size),
                [Cell(cells.get((size, *p), []), s) for p, s in zip(places, starts, strict=True)],
            )
            for size in sizes
        ],
    )


def _entry(document: Json) -> Entry:
    how: HowVerified = how_verified(document)
    figure = figures.figure("checkpoint", document)
    program = figures.figure("program", document) if figure is None else None
    shown = figure or program
    bad = [c for c in document["checks"] if c["verdict"] == document["verdict"] != "pass"]
    problem = f"{words.component_name(bad[0]['component'])}: {bad[0]['level']}" if bad else ""
    return Entry(
        artifact=document["artifact"],
        link=quote(f"{document['artifact']}.html"),
        verdict=document["verdict"],
        snr=figures.snr_text(shown) if shown else "no SNR",
        of_program=program is not None,
        at=_measured_at(shown),
        problem=problem,
        evidence=how.short if document.get("evidence") else "",
        sentence=how.sentence(),
    )


def _measured_at(check: Json | None) -> str | None:
    spec = None if check is None else COMPONENTS.get(check["component"])
    if check is None or spec is None or not spec.has_resolution:
        return None
    return words.size(check.get("size") or "")


def usual_size(grids: Sequence[Grid]) -> str:
    """The size that most numbers were measured at; those of others say theirs. "" is their own."""
    sizes = Counter(
        entry.at
        for grid in grids
        for _, cells in grid.rows
        for cell in cells
        for entry in cell.entries
        if entry.at is not None
    )
    return sizes.most_common(1)[0][0] or "" if sizes else ""


def _stem(document: Json) -> str:
    """The artifact's name without its attention, resolution and bits."""
    name = str(document["artifact"])
    size, bits = _size(document).replace("x", r"\D?"), re.escape(_bits(document))
    attention = _attention(document).replace("_", "[-_]?")
    for part in (size, bits and rf"{bits}{_APART}bits?", bits, attention):
        if part:
            name = re.sub(rf"{_APART}(?<![a-zA-Z0-9]){part}(?![a-zA-Z0-9])", "", name, flags=re.I)
    return name.strip("-_. ")


def _attention(document: Json) -> str:
    """As the report says, or the name does; nothing where neither does."""
    if found := document.get("attention"):
        return str(found)
    name = document["artifact"].replace("-", "_")
    return next((a for a in sorted(ATTENTIONS, key=len, reverse=True) if a in name), "")


def _size(document: Json) -> str:
    return document.get("resolution") or ""


def _bits(document: Json) -> str:
    return document.get("bits") or ""


def _place(attention: str) -> tuple[int, str]:
    known: Mapping[str, int] = {name: number for number, name in enumerate(ATTENTIONS)}
    return (known.get(attention, len(known)), attention)


def _width(bits: str) -> tuple[float, bool]:
    """Most bits first, palettes before integers."""
    match = re.search(r"[\d.]+", bits)
    return (float(match[0]) if match else 0.0, not bits.startswith("int"))


def _bits_text(bits: str) -> str:
    """`8` as a heading."""
    return f"{bits} {'bit' if bits == '1' else 'bits'}" if bits.isdigit() else bits
