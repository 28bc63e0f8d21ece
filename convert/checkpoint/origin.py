"""What a checkpoint was put together from, where that is more than one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.known.documents import LABELS, SDXLKind

SHOWN = 3  # names of ignored tensors


def add_file(files: dict[str, Path], folder: str, path: Path) -> str:
    """The name of an ingredient's file among a checkpoint's files, to which it is added."""
    name, number = f"{folder}/{path.name}", 1
    while files.get(name, path) != path:
        number += 1
        name = f"{folder}/{number}/{path.name}"
    files[name] = path
    return name


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA that a checkpoint's tensors have in them, for people and manifests.

    Attributes:
        file: its name among the checkpoint's files.
        scale, text_scale: its strengths, for the UNet and for the text encoders.
        kinds: kind → part → how many modules it changes.
        ignored: what of the file is not applied, in words.
        facts: what its metadata says of where it comes from.
    """

    file: str
    scale: float
    text_scale: float
    kinds: Mapping[str, Mapping[str, int]]
    ignored: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "file": self.file,
            "scale": self.scale,
            "text_scale": self.text_scale,
            "kinds": {kind: dict(parts) for kind, parts in self.kinds.items()},
            "ignored": list(self.ignored),
            "metadata": dict(self.facts),
        }

    def strengths(self) -> str:
        """The strengths in words."""
        text = "" if self.text_scale == self.scale else f", of the text encoders {self.text_scale}"
        return f"strength {self.scale}{text}"

    def line(self) -> str:
        """The same for people, on one line."""
        counts = "; ".join(
            f"{kind}: "
            + ", ".join(f"{n} module{'s' * (n != 1)} of {part}" for part, n in parts.items())
            for kind, parts in self.kinds.items()
        )
        name = self.file.rpartition("/")[2]
        ignored = "".join(f"; not applied: {what}" for what in self.ignored)
        return f"LoRA {name}, {self.strengths()}: {counts}{ignored}"


@dataclass(frozen=True)
class AppliedVae:
    """A VAE that took the place of a checkpoint's own, for people and manifests.

    Attributes:
        name: what it is called: its file, folder or repo.
        files: its weight files' names among the checkpoint's files.
        layout: what it is, in words.
        dtypes: how many tensors of each dtype it has.
        known: the published VAE that it is by its SHA-256, as its repo is called.
        license: that one's.
        is_sdxl: what says that it is for SDXL's latents; None if nothing does.
        ignored: what of its file shapes nothing, by why.
    """

    name: str
    files: tuple[str, ...]
    layout: str
    dtypes: Mapping[str, int]
    known: str | None = None
    license: str | None = None
    is_sdxl: str | None = None
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it; of ignored tensors, how many and the first."""
        return {**vars(self), "files": list(self.files), "ignored": ignored_json(self.ignored)}

    def lines(self) -> list[str]:
        """The same for people."""
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        found = [f"VAE {self.name}: {self.layout}, tensors {dtypes}"]
        if self.known:
            found.append(f"  by its SHA-256 it is {self.known} (licence: {self.license})")
        return [*found, *ignored_lines(self.ignored)]


@dataclass(frozen=True)
class AppliedEmbedding:
    """An embedding (textual inversion) that a checkpoint has rows of, for people and manifests.

    Attributes:
        files: their names among the checkpoint's files.
        name: its own.
        words: one a vector; a prompt has them one after another.
        text_encoders: that it has vectors for.
        number: of what was given, from 0; one file may hold several embeddings.
        notes: what else there is to know of it, in words.
        facts: what its metadata says of where it comes from.
    """

    files: tuple[str, ...]
    name: str
    words: tuple[str, ...]
    text_encoders: tuple[str, ...]
    number: int = 0
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What to write in a prompt, between spaces."""
        return " ".join(self.words)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "files": list(self.files),
            "name": self.name,
            "words": list(self.words),
            "text_encoders": list(self.text_encoders),
            "notes": list(self.notes),
            "metadata": dict(self.facts),
        }

    def line(self) -> str:
        """The same for people, on one line."""
        count = "1 vector" if len(self.words) == 1 else f"{len(self.words)} vectors"
        notes = "".join(f"; {note}" for note in self.notes)
        where = " and ".join(self.text_encoders)
        write = f"write it between spaces: {self.text}"
        return f"embedding {self.name}, {count} of {where}; {write}{notes}"


@dataclass(frozen=True)
class Origin:
    """Where the parts of a checkpoint came from, for people and manifests.

    Attributes:
        kind: what the UNet is for.
        layout: what the file is, in words.
        parts: of each network, tokenizer, and of the scheduler: where it came from.
        dtypes: how many tensors of each dtype the file's networks have, by network.
        ignored: the file's tensors that shape nothing, by why.
        prediction: what the UNet predicts, and what says so.
        base: the name of the checkpoint that supplied what the file lacks, if one did.
    """

    kind: SDXLKind
    layout: str
    parts: Mapping[str, str]
    dtypes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prediction: tuple[str, str] = ("epsilon", "SDXL's own; nothing in the file says otherwise")
    base: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it; of ignored tensors, how many and the first."""
        return {
            "kind": self.kind,
            "layout": self.layout,
            "parts": dict(self.parts),
            "dtypes": {part: dict(found) for part, found in self.dtypes.items()},
            "ignored": ignored_json(self.ignored),
            "prediction": {"type": self.prediction[0], "because": self.prediction[1]},
            "base": self.base,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        found = [f"{LABELS[self.kind]}: {self.layout}"]
        places: dict[str, list[str]] = {}
        for part, place in self.parts.items():
            places.setdefault(place, []).append(part)
        found += [f"  {', '.join(parts)}: {place}" for place, parts in places.items()]
        for part, dtypes in self.dtypes.items():
            listed = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items())
            found.append(f"  {part}: tensors {listed}")
        found.append(f"  predicts {self.prediction[0]} ({self.prediction[1]})")
        return [*found, *ignored_lines(self.ignored)]


def ignored_json(ignored: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Tensors that shape nothing, by why: how many, and the first."""
    return [
        {"reason": why, "count": len(names), "tensors": list(names[:SHOWN])}
        for why, names in ignored.items()
    ]


def ignored_lines(ignored: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The same for people."""
    found = []
    for why, names in ignored.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        found.append(f"  not used: `{names[0]}`{more}: {why}")
    return found
