"""Recordings kept on disk: what the reference made of a checkpoint is computed once.

```
ENTRY/recording.safetensors   component/case/inputs|outputs|fp16/name
ENTRY/recording.json          resolution, names of the cases in their order, the file's SHA-256
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.cache import Cache, key_of
from convert.files.documents import Document, FileFacts, checked
from convert.files.json_files import read_object, reason
from convert.process.code import code_digest
from convert.recipe.fields import ResolutionText
from convert.values import Resolution
from verify.judge.checks import versions
from verify.reference.recording import KINDS, Case, Denoising, Recording

ENTRIES = "recordings"  # what the cache calls them
TENSORS_FILE = "recording.safetensors"
DOCUMENT = "recording.json"


class _Kept(Document):
    """What `DOCUMENT` says."""

    resolution: ResolutionText
    cases: dict[str, list[str]]
    file: FileFacts


def recording_key(
    checkpoint: Checkpoint,
    digests: Mapping[str, str],
    components: Collection[str],
    *,
    resolution: Resolution,
    fp16: Collection[str] = (),
    denoising: Denoising | None = None,
    device: str = "cpu",
    weights: str | None = None,
) -> str:
    """The cache's key of what `record` makes of the same arguments.

    Args:
        digests: SHA-256 (hex) of the checkpoint's files, by the names in `files`.
        weights: what determines the weights that replace the checkpoint's; None for its own.
    """
    about = {
        "code": [code_digest("record"), versions()],
        "files": {**_documents(digests), **checkpoint.document_digests()},
        "tensors": {
            name: checkpoint.tensor_keys(name, digests) for name in run_by(checkpoint, components)
        },
        "parts": {name: [dict(p.config), p.variant] for name, p in checkpoint.parts.items()},
        "scheduler": dict(checkpoint.scheduler),
        "loras": [one.to_json() for one in checkpoint.loras],
        "embeddings": [one.to_json() for one in checkpoint.embeddings],
        "weights": weights,
    }
    denoising = denoising or Denoising()
    asked = {
        "components": sorted(components),
        "resolution": str(resolution),
        "fp16": sorted(set(fp16) & set(components)),
        "denoising": {**asdict(denoising), "timesteps": list(denoising.timesteps)},
        "device": device,
    }
    return key_of([about, asked])


def run_by(checkpoint: Checkpoint, components: Collection[str]) -> list[str]:
    """The components that `record` runs to have the cases of some."""
    if not any(COMPONENTS[name].has_resolution for name in components):
        return [name for name in checkpoint.components if name in components]
    return [
        name
        for name in checkpoint.components
        if COMPONENTS[name].part != "vae"
        or name in components
        or (name == "vae_decoder" and "vae_encoder" in components)
    ]


def _documents(digests: Mapping[str, str]) -> dict[str, str]:
    """Of a checkpoint's files, configs and tokenizers: tensors have keys of their own."""
    return {name: digest for name, digest in digests.items() if name.endswith((".json", ".txt"))}


def kept_recording(cache: Cache, key: str, make: Callable[[], Recording]) -> Recording:
    """The recording of a key, from the cache, or made and kept; a damaged one is made again."""

    def fill(folder: Path) -> None:
        save_recording(make(), folder)

    path, _ = cache.entry(ENTRIES, key, fill)
    try:
        return read_recording(path)
    except InputError:  # damaged although size and time are as they were
        cache.discard(ENTRIES, key)
        path, _ = cache.entry(ENTRIES, key, fill)
        return read_recording(path)


def save_recording(recording: Recording, folder: Path) -> None:
    """Write a recording into a folder, which `read_recording` reads."""
    file = folder / TENSORS_FILE
    save_tensors(file, recording.tensors())
    document: dict[str, Any] = {
        "resolution": str(recording.resolution),
        "cases": recording.names(),
        "file": {"size": file.stat().st_size, "sha256": _sha256(file.read_bytes())},
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / DOCUMENT).write_text(text, "utf-8")


def read_recording(folder: Path) -> Recording:
    """The recording that `save_recording` wrote.

    Raises:
        InputError: there is none, or it was damaged.
    """
    where = folder / DOCUMENT
    kept = checked(_Kept, read_object(where), where)
    file = folder / TENSORS_FILE
    tensors = load_tensors(file, kept.file.sha256)
    try:
        return recording_of(kept.resolution, kept.cases, tensors)
    except ValueError as error:
        raise InputError(f"does not fit its tensors: {reason(error)}", where=where) from None


def recording_of(
    resolution: Resolution, names: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor]
) -> Recording:
    """The recording whose `names` and `tensors` these are, in whatever order.

    Raises:
        ValueError: a tensor that no case has, or a case without inputs or outputs.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Tensor]]] = {
        (component, case): {kind: {} for kind in KINDS}
        for component, cases in names.items()
        for case in cases
    }
    for key, tensor in sorted(tensors.items(), key=_place):
        head, _, name = key.rpartition("/")
        head, _, kind = head.rpartition("/")
        component, _, case = head.partition("/")  # an embedding's case may have "/" in its name
        if kind not in found.get((component, case), {}):
            raise ValueError(f"no case has `{key}`")
        found[component, case][kind][name] = tensor
    for (component, case), kinds in found.items():
        if not (kinds["inputs"] and kinds["outputs"]):
            raise ValueError(f"{component}, {case}, has no inputs or no outputs")
    cases = {
        component: tuple(Case(case, **found[component, case]) for case in listed)
        for component, listed in names.items()
    }
    return Recording(resolution, cases)


def _place(item: tuple[str, Tensor]) -> int:
    """Where a tensor stands among those of its case: a file has an order of its own."""
    key, _ = item
    spec = COMPONENTS.get(key.partition("/")[0])
    features = [*spec.inputs, *spec.outputs] if spec else []
    name = key.rpartition("/")[2]
    return features.index(name) if name in features else len(features)


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, readable for everyone."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
    file.chmod(0o644)  # the library makes it readable for its owner alone


def load_tensors(file: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        sha256: of its content (hex), which must be that; not asked for if None.

    Raises:
        InputError: cannot be read, or has another content.
    """
    try:
        data = file.read_bytes()
        if sha256 not in (None, _sha256(data)):
            raise InputError("has another SHA-256 than was written down", where=file)
        return dict(load(data))
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read: {reason(error)}", where=file) from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
