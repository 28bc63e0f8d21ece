"""Results read back from JSON: one report, a run's `reports` folder, its summary, or a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.documents import Document, LocalName, checked
from convert.files.json_files import kind, read_json, shown
from convert.recipe.fields import ResolutionText
from convert.values import Effort, Level, Verdict
from verify.judge.checks import PIPELINE
from verify.reports.evidence_words import SavedEvidence
from verify.reports.report import SCHEMA

Report = dict[str, Any]  # as `verify.reports.report.to_json` makes it
SUMMARY = "summary.json"

Number = float | Literal["inf", "-inf"] | None


def _judged(name: str) -> str:
    if name not in (known := (*COMPONENTS, "artifact", PIPELINE)):
        raise ValueError(f"one of {', '.join(known)}")
    return name


JudgedName = Annotated[str, AfterValidator(_judged)]


class SavedMetrics(Document):
    """What was measured of an output: numbers, but for these."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]

    snr_db: Number = None
    finite: bool | None = None
    max_index: list[int] | None = None


class SavedCheck(Document):
    """One check."""

    level: Level
    component: JudgedName
    case: str
    output: str | None
    metrics: SavedMetrics | None
    gate: str
    verdict: Verdict
    message: str
    size: ResolutionText | None = None


class SavedImages(Document):
    """The files of a picture, beside the report."""

    reference: LocalName | None = None
    candidate: LocalName | None = None
    start: LocalName | None = None


class SavedStep(Document):
    """The errors of a step."""

    timestep: float
    latents_snr_db: Number
    noise_pred_snr_db: Number


class SavedGeneration(Document):
    """A picture of both worlds."""

    case: str
    kind: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    scheduler: str | None = None
    steps: int = 1
    guidance: float = 0
    strength: float | None = None
    seed: int = 0
    resolution: str = ""
    images: SavedImages
    trajectory: tuple[SavedStep, ...] | list[SavedStep] = ()
    latents_cosine: Number = None
    psnr_db: Number = None
    ssim: Number = None


class SavedReport(Document):
    """What comparing, judging and showing read of a report."""

    artifact: LocalName
    source: str
    resolution: str | None = None
    attention: str | None = None
    bits: str | None = None
    compressed: list[str] | None = None
    runtime: str
    scope: str
    policy: str
    versions: dict[str, str] = Field(default_factory=dict)
    fingerprint: str | None = None
    code: dict[str, str] = Field(default_factory=dict)
    asked: dict[str, Any] = Field(default_factory=dict)
    effort: Effort | None = None
    evidence: SavedEvidence = Field(default_factory=dict)
    verdict: Verdict
    checks: list[SavedCheck]
    generations: list[SavedGeneration] = Field(default_factory=list)


class SavedResult(Document):
    """An artifact's line in the summary."""

    artifact: LocalName


class Summary(Document):
    """The summary of a run; its reports are beside it."""

    results: list[SavedResult]


def read_reports(path: Path) -> tuple[Report, ...]:
    """The reports of a file or folder, checked for what comparing and judging need.

    Raises:
        InputError: nothing there, not JSON, or not results that this tool wrote.
    """
    if path.is_dir():
        folder = path / "reports" if (path / "reports").is_dir() else path
        files = sorted(p for p in folder.glob("*.json") if p.name != SUMMARY)
        if not files:
            raise InputError("holds no report", where=folder, hint="`sdxl-coreml run` writes them.")
        return tuple(_report(read_json(file), str(file)) for file in files)
    return reports_of(read_json(path), path)


def reports_of(document: Any, path: Path) -> tuple[Report, ...]:
    """The reports of a document that `path` holds; raises as `read_reports` does."""
    _require_schema(document, str(path))
    if "checks" in document:
        return (_report(document, str(path)),)
    if "reports" in document:  # a baseline, or what `recheck --json` writes of several
        found = document["reports"]
        if not isinstance(found, list) or not found:
            raise InputError("`reports` is empty", where=path)
        return tuple(_report(r, f"{path}: report {n}") for n, r in enumerate(found, 1))
    if "results" in document:  # the summary: the reports are beside it
        names = [result.artifact for result in checked(Summary, document, path).results]
        files = [path.with_name(f"{name}.json") for name in names]
        if not files:
            raise InputError("the summary names no artifact", where=path)
        return tuple(_report(read_json(file), str(file)) for file in files)
    raise InputError("holds no results of a verification", where=path)


def _require_schema(values: Any, where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"holds {kind(values)} where an object is expected", where=where)
    if values.get("schema") != SCHEMA or isinstance(values["schema"], bool):
        found = shown(values.get("schema"))
        raise InputError(f"`schema` is {found}, this tool reads {SCHEMA}", where=where)


def _report(report: Any, where: str) -> Report:
    _require_schema(report, where)
    if not report.get("checks") and isinstance(report.get("checks"), list | None):
        raise InputError("there are no checks: nothing looked at is never a pass", where=where)
    checked(SavedReport, report, where)
    return dict(report)


def as_document(reports: Sequence[Report], verdict: Verdict) -> dict[str, Any]:
    """One report as it is, several as one JSON object that `read_reports` reads again."""
    if len(reports) == 1:
        return reports[0]
    return {"schema": SCHEMA, "verdict": verdict, "reports": list(reports)}
