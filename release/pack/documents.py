"""The types of a release's manifest, as far as packing, cards and publishing read it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from convert.files.documents import Document, FileFacts, LocalName, Size
from convert.recipe.fields import BitsText, ResolutionText
from convert.run.manifest import RecipeFacts, SourceFacts
from convert.values import Attention, Effort, Verdict
from verify.reports.evidence_words import SavedEvidence

Figure = float | Literal["inf", "-inf"] | None


class DeviationDocument(Document):
    """Where a graph differs from Apple's."""

    what: str
    why: str


class Verification(Document):
    """How a verification came out."""

    verdict: Verdict
    policy: str
    effort: Effort | None = None
    evidence: SavedEvidence | None = None
    runtime: str
    scope: str
    gates: dict[str, dict[str, str]] | None = None
    snr_db: Figure = None
    program_snr_db: Figure = None
    conversion_snr_db: Figure = None


class NoticeDocument(Document):
    """What apps cannot express of the checkpoint."""

    severity: Literal["note", "warning"]
    topic: str
    problem: str
    effect: str


class ArchivePipeline(Document):
    """What diffusers' pipelines ask of the checkpoint, as far as a card tells it."""

    pipeline: dict[str, Any] | None = None


class ArchiveManifest(Document):
    """The manifest of an archive's bundle, without what all archives share."""

    artifact: LocalName
    fingerprint: str
    attention: Attention
    bits: BitsText
    resolution: ResolutionText
    bits_per_weight: dict[str, float]
    components: dict[str, LocalName]
    minimum_system: str
    deviations: list[DeviationDocument]
    files: dict[LocalName, FileFacts]
    pipeline: ArchivePipeline | None = None
    notices: list[NoticeDocument] | None = None
    verdict: Verdict | None
    effort: Effort | None = None
    evidence: SavedEvidence | None = None
    verification: Verification | None = None


class PartDocument(FileFacts):
    """A file of an archive: the whole, or one of its parts."""

    name: LocalName


class ArchiveDocument(Document):
    """An archive of a release."""

    archive: LocalName
    size: Size
    sha256: str
    files: Annotated[list[PartDocument], Field(min_length=1)]
    fingerprint: Annotated[str, Field(min_length=1)]
    manifest: ArchiveManifest


class ReleaseManifest(Document):
    """The manifest of a release."""

    name: str
    source: SourceFacts
    recipe: RecipeFacts
    versions: dict[str, str]
    archives: Annotated[list[ArchiveDocument], Field(min_length=1)]
