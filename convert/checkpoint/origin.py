"""What a checkpoint was put together from, where that is more than one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convert.known.documents import LABELS, SDXLKind

SHOWN = 3  # names of ignored tensors


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
            "ignored": [
                {"reason": why, "count": len(names), "tensors": list(names[:SHOWN])}
                for why, names in self.ignored.items()
            ],
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
        for why, names in self.ignored.items():
            more = f" and {len(names) - 1} more" if names[1:] else ""
            found.append(f"  not used: `{names[0]}`{more}: {why}")
        return found
