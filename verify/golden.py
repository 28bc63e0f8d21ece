"""Golden bundles: everything that a verification needs of the reference, as tensors on disk.

```
GOLDEN/manifest.json            what was recorded, from which checkpoint, with which versions
GOLDEN/components.safetensors   teacher-forced cases: component/case/inputs|outputs|fp16/name
GOLDEN/pictures.safetensors     whole runs: number/noise|latents|start|image|component/…
GOLDEN/checkpoint/              the checkpoint's configs and tokenizers, without its weights
```

A replay needs neither the checkpoint's weights nor PyTorch's networks. Seeds do not carry over
between runtimes, so tensors are kept, not seeds. The manifest has every file's SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.small_files import write_small_files
from convert.errors import InputError
from convert.files.appearing import appearing_folder, require_new
from convert.files.disk import digest_file
from convert.files.documents import Document, FileFacts, LocalName, checked
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import FileMissing, read_object, reason, shown
from convert.opening.folder import open_without_weights
from convert.process.progress import Say, silent
from convert.recipe.fields import ResolutionText
from convert.run import manifest as manifests
from convert.source.select import SINGLE
from verify.judge.checks import versions
from verify.reference.kept import load_tensors, recording_of, save_tensors
from verify.reference.recording import Recording
from verify.sampling.kept import PICTURES_FILE, trace_facts, trace_tensors, traces_of
from verify.sampling.sampling import Trace

SCHEMA = 1
MANIFEST = "manifest.json"
COMPONENTS_FILE = "components.safetensors"
CHECKPOINT = "checkpoint"


class _Picture(Document):
    """How a picture was made."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["text-to-image", "image-to-image"]
    prompt: str
    negative_prompt: str
    scheduler: str | None
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[float, Field(ge=0, le=100)]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    number: Annotated[int, Field(ge=1, le=100_000)] = 1
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    timesteps: list[float]
    sigmas: list[float]


class _Checkpoint(Document):
    """What it was recorded from."""

    name: str
    files: dict[str, str]


class _GoldenManifest(Document):
    """The bundle's manifest."""

    resolution: ResolutionText
    checkpoint: _Checkpoint
    cases: dict[str, list[str]]
    pictures: list[_Picture]
    versions: dict[str, str]
    files: dict[LocalName, FileFacts]


@dataclass(frozen=True)
class Golden:
    """A bundle that has been read, and whose files are as its manifest says."""

    path: Path
    checkpoint: Checkpoint  # without weights
    digests: Mapping[str, str]  # SHA-256 of the checkpoint's files, weights included
    recording: Recording
    traces: tuple[Trace, ...]
    versions: Mapping[str, str]  # of what recorded it


def write_golden(
    path: Path,
    checkpoint: Checkpoint,
    recording: Recording,
    traces: Sequence[Trace],
    *,
    digests: Mapping[str, str] | None = None,
    say: Say = silent,
) -> None:
    """Write a bundle; it appears complete or not at all.

    Args:
        path: must not exist, or be empty.
        digests: SHA-256 of the checkpoint's files, as far as they are known.

    Raises:
        InputError: `path` holds something, or cannot be written.
    """
    require_new(path)
    known = dict(digests or {})
    for name, file in checkpoint.files.items():
        if name not in known:
            say(f"hashing {name}")
            known[name] = digest_file(file)
    known |= checkpoint.document_digests()
    with appearing_folder(path) as bundle:
        _fill(bundle, checkpoint, recording, traces, known)


def _fill(
    bundle: Path,
    checkpoint: Checkpoint,
    recording: Recording,
    traces: Sequence[Trace],
    digests: Mapping[str, str],
) -> None:
    write_small_files(checkpoint, bundle / CHECKPOINT)
    save_tensors(bundle / COMPONENTS_FILE, recording.tensors())
    save_tensors(bundle / PICTURES_FILE, trace_tensors(traces))
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    manifest = {
        "schema": SCHEMA,
        "kind": "golden",
        "resolution": str(recording.resolution),
        "checkpoint": {"name": checkpoint.name, "files": dict(sorted(digests.items()))},
        "cases": recording.names(),
        "pictures": [trace_facts(trace) for trace in traces],
        "versions": versions(),
        "files": {
            str(file.relative_to(bundle)): {
                "size": file.stat().st_size,
                "sha256": digest_file(file),
            }
            for file in files
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (bundle / MANIFEST).write_text(text + "\n", "utf-8")


def read_golden(path: Path) -> Golden:
    """Read a bundle, and check that it is whole.

    Raises:
        InputError: not a bundle, of another schema, or a file is missing or has been changed.
    """
    file = path / MANIFEST
    try:
        values = read_object(file)
    except FileMissing as error:
        hint = "`sdxl-coreml record` writes a bundle."
        raise InputError(f"no golden bundle: {error.problem}", where=file, hint=hint) from None
    if values.get("kind") != "golden":
        raise InputError("is not the manifest of a golden bundle", where=file)
    if values.get("schema") != SCHEMA:
        found = shown(values.get("schema"))
        raise InputError(f"`schema` is {found}, this tool reads {SCHEMA}", where=file)
    hint = "Record it again."
    manifest = checked(_GoldenManifest, values, file, hint=hint)
    _require_files(path, values["files"])
    checkpoint = open_without_weights(path / CHECKPOINT, manifest.checkpoint.name)
    try:
        recorded = load_tensors(path / COMPONENTS_FILE)
        recording = recording_of(manifest.resolution, manifest.cases, recorded)
        pictures = load_tensors(path / PICTURES_FILE)
        traces = traces_of(values["pictures"], manifest.resolution, pictures)
    except (KeyError, ValueError) as error:
        problem = f"the manifest does not fit the bundle's tensors: {reason(error)}"
        raise InputError(problem, where=file, hint=hint) from None
    return Golden(
        path=path,
        checkpoint=checkpoint,
        digests=manifest.checkpoint.files,
        recording=recording,
        traces=traces,
        versions=manifest.versions,
    )


def require_same_checkpoint(golden: Golden, files: Mapping[str, str], what: str) -> None:
    """Raise InputError if a file of the recorded checkpoint has another SHA-256 in `files`."""
    shared = golden.digests.keys() & files.keys()
    different = sorted(name for name in shared if golden.digests[name] != files[name])
    if different or not any(name.endswith(SINGLE) for name in shared):
        found = f"{different[0]} differs" if different else "they share no weight file"
        raise InputError(
            f"was recorded from another checkpoint than {what}: {found}",
            where=golden.path,
            hint="Record a bundle from the checkpoint that the artifact was made from.",
        )


def source_files(artifact: Path) -> dict[str, str] | None:
    """What an artifact's manifest says of its checkpoint's files; None without a manifest."""
    manifest = manifests.read(artifact) if artifact.is_dir() else None
    files = ((manifest or {}).get("source") or {}).get("files")
    return dict(files) if files else None


def _require_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, facts in files.items():
        file = path / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file():
            raise InputError("missing", where=file, hint="Copy the whole bundle again.")
        refuse_pointer(file)
        if file.stat().st_size != facts["size"] or digest_file(file) != facts["sha256"]:
            raise InputError(
                "has another SHA-256 than the bundle's manifest says",
                where=file,
                hint="It was damaged or changed: copy the bundle again, or record a new one.",
            )
