"""What a source holds, whether or not it can be converted as it is: for people who look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint.derived import dtypes_of
from convert.checkpoint.layout import recognise
from convert.checkpoint.origin import ignored_json, ignored_lines
from convert.checkpoint.tensors import Tensor
from convert.checkpoint.weights import read_weights
from convert.components import SUBFOLDERS
from convert.known.documents import LABELS
from convert.opening.door import alone
from convert.opening.folder import open_folder
from convert.opening.kinds import kind_of, kind_of_file, prediction_of
from convert.units import size

# Of a header's metadata, which may hold whole workflows, what says what the model is.
TOLD = ("modelspec.", "ss_base_model_version", "ss_sd_model_name")


@dataclass(frozen=True)
class PartContents:
    """One network of a source."""

    layout: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class SourceContents:
    """What a folder in diffusers' layout, or a single file, holds."""

    path: Path | str  # as it is told
    format: str
    kind: str | None  # None without a UNet
    parts: Mapping[str, PartContents]
    prediction: tuple[str, str] | None = None
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The networks that a base has to supply."""
        wanted = [n for n in SUBFOLDERS if not (n == "text_encoder" and self.kind == "refiner")]
        return tuple(name for name in wanted if name not in self.parts)

    def to_json(self) -> dict[str, Any]:
        """All of it; of ignored tensors, how many and the first."""
        return {
            "schema": 1,
            "path": str(self.path),
            "what": "source",
            "format": self.format,
            "kind": self.kind,
            "parts": {name: {**vars(part)} for name, part in self.parts.items()},
            "missing": list(self.missing),
            "prediction": self.prediction
            and {"type": self.prediction[0], "because": self.prediction[1]},
            "ignored": ignored_json(self.ignored),
            "metadata": dict(self.metadata),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        what = LABELS[self.kind] if self.kind else "parts of SDXL"  # type: ignore[index]
        lines = [f"{self.path}: {what}, {self.format}"]
        width = max(map(len, self.parts))
        for name, part in self.parts.items():
            dtypes = ", ".join(f"{count} {dtype}" for dtype, count in part.dtypes.items())
            lines.append(
                f"  {name:<{width}}  {part.tensors} tensors ({dtypes}), {part.parameters:,} "
                f"parameters, {part.layout}"
            )
        if self.missing:
            lines.append(f"  lacks {', '.join(self.missing)}: --base says where they come from")
        if self.prediction:
            lines.append(f"  predicts {self.prediction[0]} ({self.prediction[1]})")
        lines += ignored_lines(self.ignored)
        lines += [f"  {key}: {value}" for key, value in self.metadata.items()]
        return lines


def is_source(path: Path) -> bool:
    """Whether something is a source rather than what this tool has made."""
    if path.is_file():
        return True
    return (path / "model_index.json").exists() or any((path / n).is_dir() for n in SUBFOLDERS)


def source_contents(path: Path) -> SourceContents:
    """What a source holds, by its headers; raises InputError for what is none of SDXL's."""
    single = alone(path) if path.is_dir() else path
    if single is None:
        checkpoint = open_folder(path)
        parts = {
            name: _part("diffusers' names", part.tensors.values())
            for name, part in checkpoint.parts.items()
        }
        said = str(checkpoint.scheduler.get("prediction_type", "epsilon"))
        prediction = (said, "scheduler_config.json")
        kind = kind_of(checkpoint)
        return SourceContents(path, "a folder in diffusers' layout", kind, parts, prediction)
    file = read_weights(single)
    layout = recognise(file.tensors, file.path)
    others = {"no tensors, left by the trainer": file.others} if file.others else {}
    has_unet = "unet" in layout.parts
    return SourceContents(
        path=file.path,
        format=f"a single file, {file.format}, {size(file.path.stat().st_size)}",
        kind=kind_of_file(layout, file.path) if has_unet else None,
        parts={
            name: _part(f"{part.spelling} names", part.tensors.values())
            for name in SUBFOLDERS
            if (part := layout.parts.get(name)) is not None
        },
        prediction=prediction_of(layout, file.metadata, file.path) if has_unet else None,
        ignored={**layout.ignored, **others},
        metadata={k: v for k, v in file.metadata.items() if k.startswith(TOLD) and len(v) < 200},
    )


def _part(layout: str, tensors: Iterable[Tensor]) -> PartContents:
    held = list(tensors)
    return PartContents(layout, len(held), sum(tensor.size for tensor in held), dtypes_of(held))
