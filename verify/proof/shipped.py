"""A package of an artifact, as a proof is about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.run.run import Result
from convert.values import Resolution
from verify.artifact.artifact import Artifact, open_artifact

WEIGHTS = "weight.bin"  # how weight files are called, in packages of every form


@dataclass(frozen=True)
class Shipped:
    """One component of one artifact.

    Attributes:
        claims: what the manifest claims of this package; equal packages have equal claims.
        compression: how the manifest says that its weights are stored.
        files: SHA-256 (hex) of the package's files, by path in it.
        native: whether our converter made it.
    """

    artifact: Artifact
    component: str
    claims: Mapping[str, str]
    compression: Mapping[str, Any]
    files: Mapping[str, str]
    native: bool

    @property
    def package(self) -> Path:
        """Where it lies."""
        return self.artifact.packages[self.component]

    @property
    def resolution(self) -> Resolution:
        """Of its artifact's images."""
        return Resolution.parse(self.artifact.claims["resolution"])

    @property
    def size(self) -> Resolution | None:
        """The size that it is made for; None of a text encoder."""
        return self.resolution if COMPONENTS[self.component].has_resolution else None

    @property
    def attention(self) -> str | None:
        """The attention that it has; None where it is of none."""
        return self.claims.get("attention")

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of its weight files."""
        return {name: sha for name, sha in self.files.items() if name.endswith(WEIGHTS)}

    @property
    def is_compressed(self) -> bool:
        """Whether any of its weights is."""
        return bool(self.compression.get("tensors"))

    @property
    def is_half(self) -> bool:
        """Whether it computes in float16."""
        spec = COMPONENTS[self.component]
        return spec.is_half or self.claims.get("vae_precision") == "float16"

    def __str__(self) -> str:
        return f"{self.component} of {self.artifact.name}"


def members_of(results: Sequence[Result], source: Checkpoint) -> list[Shipped]:
    """Every package of the artifacts of a run, artifact by artifact.

    Raises:
        InputError: an artifact cannot be opened.
    """
    return [member for result in results for member in _members(result, source)]


def _members(result: Result, source: Checkpoint) -> Iterator[Shipped]:
    manifest = result.manifest
    artifact = open_artifact(result.path, source, list(manifest["components"]))
    for component in artifact.packages:
        prefix = f"{manifest['components'][component]}/"
        yield Shipped(
            artifact,
            component,
            {name: v for name, v in artifact.claims.items() if _is_of(name, component)},
            manifest["compression"][component],
            {
                name.removeprefix(prefix): facts["sha256"]
                for name, facts in manifest["files"].items()
                if name.startswith(prefix)
            },
            manifest["engine"] == "native",
        )


def _is_of(claim: str, component: str) -> bool:
    """Whether what a manifest claims is of this package, too."""
    spec = COMPONENTS[component]
    return {
        "artifact": False,
        "attention": spec.has_attention,
        "resolution": spec.has_resolution,
        "vae_precision": not spec.is_half,
    }.get(claim, True)
