"""An inspection as text for a terminal: aligned, with sizes for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import units
from verify.artifact.layers import layer_table

if TYPE_CHECKING:
    from verify.artifact.inspect import Inspection, ModelFacts
    from verify.mil.program import Feature

LABEL = 15  # columns of the facts' names, their indentation included


def lines(inspection: Inspection, width: int = 100) -> list[str]:
    """One block a model, after the artifact's name and size if there are several models."""
    models = inspection.models
    out: list[str] = []
    if len(models) > 1 or inspection.manifest is not None:
        name = (inspection.manifest or {}).get("artifact")
        title = name if isinstance(name, str) else inspection.path.resolve().name
        count, size = len(inspection.files), units.size(sum(inspection.files.values()))
        out += [f"{title}: {count} model{'s' * (count != 1)}, {size}"]
        out += [*_embeddings(inspection.manifest or {}), ""]
    for model in models:
        out += [*_model(model, width), ""]
    return out[:-1]


def _embeddings(manifest: Mapping[str, Any]) -> Iterator[str]:
    """How to write the embeddings that an artifact has, where its manifest tells."""
    source = manifest.get("source")
    found = source.get("embeddings") if isinstance(source, dict) else None
    for one in found if isinstance(found, list) else ():
        words = one.get("words") if isinstance(one, dict) else None
        if isinstance(words, list):
            yield f"embedding, written between spaces: {' '.join(map(str, words))}"


def _model(model: ModelFacts, width: int) -> list[str]:
    weights = model.weights
    what = [
        model.component or "not a component of SDXL",
        f"attention {model.attention}" if model.attention else "",
        str(model.image_size) if model.image_size else "",
    ]
    formats = ", ".join(f"{units.count(n)} {kind}" for kind, n in weights.formats.items())
    # A no-break space keeps an op and its count on one line.
    ops = ", ".join(f"{name}\u00a0{count}" for name, count in model.ops.items())
    facts: list[tuple[str, list[str] | str]] = [
        ("component", ", ".join(w for w in what if w)),
        ("format", f"specification {model.specification_version}, opset {model.opset}"),
        ("size", f"{units.size(model.bytes)}, of which weights {units.size(weights.bytes)}"),
        (
            "weights",
            f"{units.count(weights.elements)} at {weights.bits_per_weight:.2f} bits: {formats}"
            if weights.elements
            else "none in files",
        ),
        ("inputs", _features(model.inputs)),
        ("outputs", _features(model.outputs)),
        ("operations", f"{sum(model.ops.values()):,} and {model.constants:,} constants: {ops}"),
        ("description", model.short_description),
        ("author", model.author),
        ("license", model.license),
        ("version", model.version),
        ("metadata", [f"{key} = {value}" for key, value in model.user_defined.items()]),
        ("SHA-256", [f"{f.sha256}  {Path(name).name}" for name, f in model.files.items()]),
    ]
    out = [model.file]
    if model.function is not None:
        is_default = model.function == model.default_function
        out = [f"{model.file}, function {model.function}{' (default)' if is_default else ''}"]
    for label, value in facts:
        rows = textwrap.wrap(value, max(width - LABEL, 20)) if isinstance(value, str) else value
        for index, row in enumerate(rows):
            text = row.replace("\u00a0", " ")
            out.append(f"  {label if index == 0 else '':<{LABEL - 2}}{text}")
    if model.layers is not None:
        out += ["", *(f"  {row}" for row in layer_table(model.layers))]
    return out


def _features(features: Iterable[Feature]) -> list[str]:
    features = list(features)
    width = max((len(f.name) for f in features), default=0)
    kind = max((len(f.dtype) for f in features), default=0)
    return [
        f"{f.name:<{width}}  {f.dtype:<{kind}}  {' × '.join(map(str, f.shape)) or 'scalar'}"
        for f in features
    ]
