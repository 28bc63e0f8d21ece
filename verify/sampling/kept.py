"""Whole runs of the reference, kept on disk.

```
FOLDER/pictures.safetensors   number/noise|latents|start|image|component/…
FOLDER/pictures.json          how each picture was made
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.errors import InputError
from convert.files.cache import Cache
from convert.files.json_files import reason
from convert.values import Resolution
from verify.reference.kept import load_tensors, save_tensors
from verify.sampling.sampling import NetworkCall, Picture, Settings, Trace

ENTRIES = "traces"  # what the cache calls them
PICTURES_FILE = "pictures.safetensors"
DOCUMENT = "pictures.json"


def kept_traces(cache: Cache, key: str, make: Callable[[], Sequence[Trace]]) -> tuple[Trace, ...]:
    """The runs of a key, from the cache, or made and kept; damaged ones are made again."""

    def fill(folder: Path) -> None:
        save_traces(make(), folder)

    path, _ = cache.entry(ENTRIES, key, fill)
    try:
        return read_traces(path)
    except InputError:  # damaged although size and time are as they were
        cache.discard(ENTRIES, key)
        path, _ = cache.entry(ENTRIES, key, fill)
        return read_traces(path)


def save_traces(traces: Sequence[Trace], folder: Path) -> None:
    """Write whole runs into a folder, which `read_traces` reads."""
    save_tensors(folder / PICTURES_FILE, trace_tensors(traces))
    resolutions = {str(trace.resolution) for trace in traces}
    document = {"resolution": min(resolutions), "pictures": [trace_facts(t) for t in traces]}
    (folder / DOCUMENT).write_text(json.dumps(document, ensure_ascii=False), "utf-8")


def read_traces(folder: Path) -> tuple[Trace, ...]:
    """The runs that `save_traces` wrote. Raises InputError if they were damaged."""
    file = folder / DOCUMENT
    try:
        document = json.loads(file.read_bytes())
        resolution = Resolution.parse(document["resolution"])
        return traces_of(document["pictures"], resolution, load_tensors(folder / PICTURES_FILE))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"does not fit its tensors: {reason(error)}", where=file) from None


def trace_facts(trace: Trace) -> dict[str, Any]:
    """How a run's picture was made."""
    picture = trace.picture
    steps = {"timesteps": picture.timesteps, "sigmas": picture.sigmas}
    return {**asdict(trace.settings), **steps}


def trace_tensors(traces: Sequence[Trace]) -> dict[str, Tensor]:
    """All tensors of the traces; an input that is that of the call before is not repeated."""
    found: dict[str, Tensor] = {}
    for number, trace in enumerate(traces):
        found |= {f"{number}/noise/{i}": t for i, t in enumerate(trace.noise)}
        found |= {f"{number}/latents/{i}": t for i, t in enumerate(trace.picture.latents)}
        found[f"{number}/image"] = torch.from_numpy(trace.picture.image)
        if trace.start is not None:
            found[f"{number}/start"] = torch.from_numpy(trace.start)
        for component, calls in trace.calls.items():
            before: Mapping[str, Tensor] = {}
            for index, call in enumerate(calls):
                where = f"{number}/{component}/{index}"
                for name, tensor in call.inputs.items():
                    if before.get(name) is not tensor:
                        found[f"{where}/inputs/{name}"] = tensor
                found |= {f"{where}/outputs/{name}": t for name, t in call.outputs.items()}
                before = call.inputs
    return found


def traces_of(
    pictures: Sequence[Mapping[str, Any]], resolution: Resolution, tensors: Mapping[str, Tensor]
) -> tuple[Trace, ...]:
    """The runs whose facts and tensors these are; raises KeyError or ValueError if they are not."""
    traces = []
    for number, picture in enumerate(pictures):
        own = {
            key.partition("/")[2]: tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{number}/")
        }
        asked = {k: v for k, v in picture.items() if k not in ("timesteps", "sigmas")}
        start = own.get("start")
        traces.append(
            Trace(
                settings=Settings(**asked),
                resolution=resolution,
                noise=_listed(own, "noise"),
                picture=Picture(
                    latents=_listed(own, "latents"),
                    image=np.asarray(own["image"].numpy()),
                    timesteps=tuple(picture["timesteps"]),
                    sigmas=tuple(picture["sigmas"]),
                ),
                calls=_calls(own),
                start=None if start is None else np.asarray(start.numpy()),
            )
        )
    return tuple(traces)


def _listed(tensors: Mapping[str, Tensor], kind: str) -> tuple[Tensor, ...]:
    count = sum(key.startswith(f"{kind}/") for key in tensors)
    return tuple(tensors[f"{kind}/{index}"] for index in range(count))


def _calls(tensors: Mapping[str, Tensor]) -> dict[str, tuple[NetworkCall, ...]]:
    parts: dict[str, dict[int, dict[str, dict[str, Tensor]]]] = {}
    for key, tensor in tensors.items():
        if key.count("/") == 3:
            component, index, kind, name = key.split("/")
            part = parts.setdefault(component, {}).setdefault(int(index), {})
            part.setdefault(kind, {})[name] = tensor
    calls: dict[str, tuple[NetworkCall, ...]] = {}
    for component, found in parts.items():
        made: list[NetworkCall] = []
        for _, call in sorted(found.items()):
            before = made[-1].inputs if made else {}
            made.append(NetworkCall({**before, **call.get("inputs", {})}, call["outputs"]))
        calls[component] = tuple(made)
    return calls
