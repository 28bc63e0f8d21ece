"""manifest.json: what an artifact is, where it came from, and the digest of its every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from convert import __version__
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.cache import key_of
from convert.files.documents import Document, FileFacts, LocalName, checked
from convert.files.json_files import read_object
from convert.plan.notices import notices
from convert.recipe.fields import BitsText, GroupSize, ResolutionText, WidthText
from convert.values import FORMATS, Attention, DeploymentTarget, VaePrecision, Verdict
from convert.weights.compress import UNCOMPRESSED

if TYPE_CHECKING:
    from convert.plan.plan import Job, Plan, PlannedArtifact
    from convert.recipe.recipe import ArtifactSpec, Recipe
    from convert.run.packages import Context, Package
    from convert.weights.compress import ComponentWeights

FILE = "manifest.json"
SCHEMA = 1


REMEDY = "Remove the folder and run the command that made it again."


class LoraFacts(Document):
    """A LoRA that was merged into the checkpoint's weights."""

    file: str
    sha256: str | None
    scale: float
    text_scale: float
    kinds: dict[str, dict[str, int]]
    ignored: tuple[str, ...] = Field((), strict=False)
    repo: str | None = None
    commit: str | None = None


class VaeFacts(Document):
    """The VAE that took the place of the checkpoint's own."""

    name: str
    files: dict[str, str | None]
    layout: str
    known: str | None = None
    license: str | None = None
    repo: str | None = None
    commit: str | None = None


class EmbeddingFacts(Document):
    """An embedding whose vectors the text encoders have, and the words that reach them."""

    files: dict[str, str | None]
    words: list[str]
    text_encoders: list[str]
    notes: list[str] = Field(default_factory=list)


class IgnoredFacts(Document):
    """Tensors of a file that shape nothing."""

    reason: str


class OriginFacts(Document):
    """What a checkpoint was put together from."""

    ignored: list[IgnoredFacts] = Field(default_factory=list)


class BaseFacts(Document):
    """The checkpoint that supplied what a file lacks."""

    name: str
    repo: str | None = None
    commit: str | None = None


class SourceFacts(Document):
    """The checkpoint that an artifact was made from."""

    name: str
    repo: str | None = None
    commit: str | None = None
    files: dict[str, str]
    origin: OriginFacts | None = None
    base: BaseFacts | None = None
    loras: list[LoraFacts] = Field(default_factory=list)
    vae: VaeFacts | None = None
    embeddings: list[EmbeddingFacts] = Field(default_factory=list)


class RecipeFacts(Document):
    """The recipe that an artifact was made by."""

    name: str
    digest: str
    text: str


class Manifest(Document):
    """What is read of an artifact's manifest, and of a bundle's."""

    artifact: LocalName
    fingerprint: str
    attention: Attention
    bits: BitsText
    resolution: ResolutionText
    deployment: DeploymentTarget
    specification_version: Literal[8, 9, 10]
    vae_precision: VaePrecision
    vae_precision_because: str | None = None
    components: dict[str, LocalName]
    bits_per_weight: dict[str, float] | None = None
    files: dict[LocalName, FileFacts]
    pipeline: dict[str, Any] | None = None
    source: SourceFacts
    recipe: RecipeFacts
    versions: dict[str, str]
    verdict: Verdict | None = None


class TensorRequest(Document):
    """What a recipe asks for a single tensor."""

    bits: WidthText
    group_size: GroupSize | None = None


class CompressionRequest(Document):
    """What a recipe asks for a component beside its artifact's bits.

    Attributes:
        bits: of the component instead of the artifact's.
        group_size: output channels that share a palette.
        tensors: the tensors that have bits of their own, by name.
    """

    bits: WidthText | None = None
    group_size: GroupSize | None = None
    tensors: dict[str, TensorRequest] = Field(default_factory=dict)


def read_values(folder: Path) -> dict[str, Any]:
    """What the manifest of an artifact, bundle or release says, unchecked; as `read_object`."""
    # Older versions wrote a scheduler's `-Infinity` as it is.
    return read_object(folder / FILE, infinities=True)


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder or bundle, or None if the folder is none of ours.

    Raises:
        InputError: it is one of ours, and a value in it has become one of another kind.
    """
    try:
        values = read_values(folder)
    except InputError:
        return None
    if "artifact" not in values or "fingerprint" not in values:
        return None
    checked(Manifest, values, folder / FILE, hint=REMEDY)
    return values


def read_artifact(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder of packages, as they are made; None if it is none.

    Raises:
        InputError: as `read`.
    """
    manifest = read(folder)
    files = manifest["components"].values() if manifest else ()
    return manifest if files and all(name.endswith(".mlpackage") for name in files) else None


def text(manifest: Mapping[str, Any]) -> str:
    """The manifest as the file has it."""
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def compose(
    planned: PlannedArtifact,
    plan: Plan,
    context: Context,
    packages: Mapping[Job, Package],
    texts: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of an artifact, without a verdict yet.

    Args:
        plan: that the artifact is of.
        packages: the finished package of each job.
        texts: the artifact's files beside the packages, by name.
    """
    artifact, recipe = planned.artifact, plan.recipe
    components = {c: f"{COMPONENTS[c].file}.mlpackage" for c in planned.jobs}
    files: dict[str, Any] = {
        f"{components[c]}/{file}": facts
        for c, job in planned.jobs.items()
        for file, facts in packages[job].files.items()
    }
    for name, content in texts.items():
        data = content.encode()
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "artifact": artifact.name,
        "attention": artifact.attention,
        "bits": artifact.bits,
        "resolution": str(artifact.resolution),
        "deployment": recipe.target.deployment,
        "specification_version": FORMATS[recipe.target.deployment].specification_version,
        "vae_precision": plan.precision.value,
        **({"vae_precision_because": why} if (why := plan.precision.because) else {}),
        "engine": next(iter(planned.jobs.values())).engine,
        "components": components,
        "compression": {
            c: _compression(job, _asked(plan.weights[c], artifact, recipe))
            for c, job in planned.jobs.items()
        },
        "bits_per_weight": {c: packages[job].bits_per_weight for c, job in planned.jobs.items()},
        "files": dict(sorted(files.items())),
        "pipeline": plan.pipeline,
        "notices": [n.to_json() for n in notices(context.checkpoint, planned.jobs)],
        "source": _source(context),
        "recipe": {"name": recipe.name, "digest": recipe.digest, "text": recipe.text},
        "versions": {
            "sdxl-coreml": __version__,
            **{name: version(name) for name in ("coremltools", "numpy")},
        },
    }
    return {**manifest, "fingerprint": key_of(manifest), "verdict": None}


def _source(context: Context) -> dict[str, Any]:
    """The checkpoint, and what it was put together from where that is more than a folder."""
    found: dict[str, Any] = {
        "name": context.checkpoint.name,
        "repo": context.repo,
        "commit": context.commit,
        "files": context.digests,
    }
    origin = context.checkpoint.origin
    if origin is not None:
        found["origin"] = origin.to_json()
    if (vae := context.checkpoint.other_vae) is not None:
        files = {name: context.digests.get(name) for name in vae.files}
        found["vae"] = {**vae.to_json(), "files": files, **_place(context, "vae")}
    if context.checkpoint.loras:
        found["loras"] = [
            {
                **lora.to_json(),
                "sha256": context.digests.get(lora.file),
                **_place(context, f"loras[{index}]"),
            }
            for index, lora in enumerate(context.checkpoint.loras)
        ]
    if context.checkpoint.embeddings:
        found["embeddings"] = [
            {
                **embedding.to_json(),
                "files": {name: context.digests.get(name) for name in embedding.files},
                **_place(context, f"embeddings[{embedding.number}]"),
            }
            for embedding in context.checkpoint.embeddings
        ]
    if origin is not None and origin.base is not None:
        place = {"repo": None, "commit": None, **_place(context, "base")}
        found["base"] = {"name": origin.base, **place}
    return found


def _place(context: Context, what: str) -> dict[str, str | None]:
    """The Hub repo and commit of an ingredient; nothing of one that has none."""
    found = context.ingredients.get(what)
    return {"repo": found.repo, "commit": found.commit} if found and found.repo else {}


def _asked(weights: ComponentWeights, artifact: ArtifactSpec, recipe: Recipe) -> CompressionRequest:
    if artifact.bits == UNCOMPRESSED:
        return CompressionRequest()
    return CompressionRequest(
        bits=getattr(recipe.compress.components, weights.component, None),
        group_size=weights.group_size,
        tensors={
            name: TensorRequest(bits=own.bits, group_size=own.group_size)
            for name, own in weights.asked.items()
        },
    )


def _compression(job: Job, asked: CompressionRequest) -> dict[str, Any]:
    """A component's weights: its bits, what was asked beside them, and the tensors by method."""
    tensors: dict[str, list[str]] = {}
    for name, method in job.compression.methods:
        tensors.setdefault(str(method), []).append(name)
    return {
        "bits": job.bits,
        "asked": asked.model_dump(exclude_defaults=True),
        "tensors": dict(sorted(tensors.items())),
    }


def is_complete(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every file of the manifest is there with its size."""
    try:
        return all(
            (folder / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
    except OSError:
        return False
