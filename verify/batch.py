"""Verify every artifact of a run, and keep the reports beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.cache import Cache, key_of
from convert.plan.plan import Plan
from convert.process.code import code_digest
from convert.process.interrupts import deferred_interrupt
from convert.process.progress import Say, silent
from convert.recipe.sections import Verify
from convert.run import manifest as manifests
from convert.run.run import Result
from convert.values import Resolution, Verdict
from verify.judge.checks import exit_code, versions, worst
from verify.judge.gates import recipe_gates
from verify.judge.policy import Policy, load_policy
from verify.reports.images import image_paths
from verify.reports.recheck import recheck
from verify.reports.report import SCHEMA
from verify.reports.saved import Report, read_reports
from verify.reports.summary import summary_json, summary_markdown, summary_table

if TYPE_CHECKING:
    from verify.question import Evidence, Question


_Reported = tuple[Result, dict[str, Any], dict[str, bytes]]  # its report, and that one's images


@dataclass(frozen=True)
class Outcome:
    """The reports of all artifacts of a run, as JSON."""

    reports: tuple[dict[str, Any], ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the artifacts'."""
        return worst(r["verdict"] for r in self.reports)

    @property
    def document(self) -> dict[str, Any]:
        """The summary, as reports/summary.json has it."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "results": [summary_json(r) for r in self.reports],
        }

    def exit_code(self, *, strict: bool = False) -> int:
        """0 pass, 1 fail, 3 indeterminate (1 if `strict`)."""
        return exit_code(self.verdict, strict=strict)

    def table(self) -> Any:
        """The summary for a terminal: each artifact's figures, a column for each component."""
        return summary_table(self.reports)


def verify_all(
    out: Path,
    artifacts: Sequence[Result],
    plan: Plan,
    *,
    command: Callable[[str], str] | None = None,
    say: Say = silent,
) -> Outcome:
    """Verify the artifacts and write `out/reports`; a report that is still true is kept.

    Where what was measured is still true and only the gates, or what applies them, have changed,
    the report is judged again and nothing is run.

    Artifacts of one resolution are checked against one recording of the reference, made with the
    recipe's first prompt, and against the same whole runs of the reference, of all its prompts.

    Args:
        command: an artifact's name → the command line that repeats its verification, for its page;
            one that knows no recipe if None.

    Raises:
        CannotExecute: a package that cannot be read or run.
    """
    policy = load_policy()
    reports: dict[str, dict[str, Any]] = {}
    with Cache(out / ".cache") as cache:
        doubtful = []
        for artifact in artifacts:
            name = artifact.manifest["artifact"]
            found = _measured(out / "reports" / f"{name}.json", artifact, plan.recipe.verify)
            reports[name] = found or {}  # its place
            if found is None:
                doubtful.append(artifact)
        again = _judged_again(artifacts, reports, plan.recipe.verify, policy, say)
        for artifact, document, images in chain(again, _verified(doubtful, plan, policy, say)):
            name = artifact.manifest["artifact"]
            for path, image in images.items():
                cache.write_bytes(out / "reports" / path, image)
            cache.write_text(out / "reports" / f"{name}.json", _text(document))
            reports[name] = document
        for artifact in artifacts:
            verdict = reports[artifact.manifest["artifact"]]["verdict"]
            if artifact.manifest["verdict"] != verdict:
                manifest = manifests.text({**artifact.manifest, "verdict": verdict})
                cache.write_text(artifact.path / manifests.FILE, manifest)
        outcome = Outcome(tuple(reports.values()))
        cache.write_text(out / "reports" / "summary.json", _text(outcome.document))
        cache.write_text(out / "reports" / "summary.md", summary_markdown(outcome.reports))
        _write_pages(cache, out / "reports", outcome.reports, command)
    return outcome


def _write_pages(
    cache: Cache,
    folder: Path,
    reports: Sequence[dict[str, Any]],
    command: Callable[[str], str] | None,
) -> None:
    """An HTML page for each report, and one that links to them."""
    from verify.page.page import html, index_html, read_images

    images: dict[str, bytes] = {}
    for report in reports:
        found = read_images(report, folder)
        name = report["artifact"]
        page = html(report, found, index="index.html", command=command and command(name))
        cache.write_text(folder / f"{name}.html", page)
        images.update(found)
    cache.write_text(folder / "index.html", index_html(reports, images))


def _judged_again(
    artifacts: Sequence[Result],
    reports: Mapping[str, Report],
    asked: Verify,
    policy: Policy,
    say: Say,
) -> Iterator[_Reported]:
    """Each artifact with a report that is true and not judged by today's gates."""
    for artifact in artifacts:
        name = artifact.manifest["artifact"]
        if reports[name]:
            document = _judged(reports[name], artifact, asked, policy)
            if document != reports[name]:
                say(f"{name}: judged again")
                yield artifact, document, {}


def _verified(
    artifacts: Sequence[Result], plan: Plan, policy: Policy, say: Say
) -> Iterator[_Reported]:
    """Each artifact with its report and that one's images, those of one resolution together."""
    if not artifacts:
        return
    with deferred_interrupt():  # torch is only imported where there is something to verify
        from verify.question import Question
        from verify.reports import report
        from verify.run import verify
    asked = plan.recipe.verify
    by_resolution: dict[str, list[Result]] = {}
    for artifact in artifacts:
        by_resolution.setdefault(artifact.manifest["resolution"], []).append(artifact)
    for resolution, group in by_resolution.items():
        question = Question(
            levels=asked.levels,
            components=list(group[0].manifest["components"]),
            recipe=asked,
            policy=policy,
        )
        told = _prefixed(say, f"{resolution}: ")
        evidence = _evidence(plan.checkpoint, group[0], question, say=told)
        for artifact in group:
            told = _prefixed(say, f"{artifact.path.name}: ")
            results = verify(artifact.path, evidence, question, say=told)
            document = report.to_json(results)
            marks = {
                "measured_of": _looked_at(artifact),
                "fingerprint": artifact.manifest["fingerprint"],
                "asked": _asked(asked),
            }
            yield artifact, {**document, **marks}, report.pictures(results)


def _evidence(
    checkpoint: Checkpoint, artifact: Result, question: Question, *, say: Say
) -> Evidence:
    """What all artifacts of this one's resolution are compared with."""
    from verify.question import Evidence
    from verify.reference.recording import Denoising, record
    from verify.sampling.sampling import kinds_of, settings_for, trace_all

    asked, components = question.recipe, list(artifact.manifest["components"])
    resolution = Resolution.parse(artifact.manifest["resolution"])
    recording = traces = None
    if question.compares:
        recording = record(
            checkpoint,
            components,
            resolution=resolution,
            fp16=[c for c in components if _precision(artifact, c) == "float16"],
            denoising=Denoising.of(asked),
            say=say,
        )
    if question.makes_pictures:
        settings = settings_for(asked, kinds_of(components), embeddings=checkpoint.embeddings)
        traces = trace_all(checkpoint, settings, resolution, say=say)
    return Evidence(checkpoint, recording=recording, traces=traces)


def _prefixed(say: Say, prefix: str) -> Say:
    return lambda text: say(prefix + text)


def _precision(artifact: Result, component: str) -> str:
    is_half = COMPONENTS[component].is_half
    return "float16" if is_half else str(artifact.manifest["vae_precision"])


def _measured(file: Path, artifact: Result, asked: Verify) -> Report | None:
    """The report, if what it measured is of these files, this code, these versions and prompts."""
    try:
        (report,) = read_reports(file)
        same = (
            report["measured_of"] == _looked_at(artifact)
            and report["code"]["measured_by"] == code_digest("measure")
            and report["versions"] == versions()
            and _without_gates(report["asked"]) == _without_gates(_asked(asked))
            and all((file.parent / image).is_file() for image in image_paths(report))
        )
        return report if same else None
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _looked_at(artifact: Result) -> str:
    """The digest of all that a verification looks at: not what else the recipe says."""
    unseen = ("recipe", "fingerprint", "verdict")
    return key_of({key: value for key, value in artifact.manifest.items() if key not in unseen})


def _judged(report: Report, artifact: Result, asked: Verify, policy: Policy) -> Report:
    """The report as it is, or judged again if gates or what applies them have changed."""
    current = {
        "code": policy.made_by,
        "fingerprint": artifact.manifest["fingerprint"],
        "asked": _asked(asked),
    }
    if {key: report.get(key) for key in current} == current:
        return report
    return {**recheck(report, policy, recipe_gates(asked.gates, report["bits"])), **current}


def _asked(asked: Verify) -> dict[str, Any]:
    return dict(json.loads(asked.model_dump_json()))


def _without_gates(asked: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if key != "gates"}


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
