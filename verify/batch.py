"""Verify every artifact of a run, and keep the reports beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.components import COMPONENTS
from convert.files.cache import Cache
from convert.plan.plan import Plan
from convert.process.progress import Progress, Silent
from convert.recipe.sections import Verify
from convert.run import manifest as manifests
from convert.run.run import Result
from convert.values import Effort, Resolution, Verdict
from verify.judge.checks import Results, exit_code, versions, worst
from verify.judge.gates import recipe_gates
from verify.judge.policy import Policy, load_policy
from verify.proof.prove import Proven, prove
from verify.proof.tasks import ProofContext
from verify.reference.kept import run_by
from verify.reference.reference import how_read
from verify.reports import report
from verify.reports.images import image_paths
from verify.reports.recheck import recheck
from verify.reports.report import SCHEMA
from verify.reports.summary import summary_json, summary_markdown, summary_table


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
    effort: Effort | None = None,
    command: Callable[[str], str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Verify the artifacts and write `out/reports`.

    What was found before, of these files, by this code, with these versions and prompts, holds and
    is not found again; gates are applied anew, so that only they can change without anything being
    run. What several artifacts share is done once.

    Args:
        effort: how much is executed; what the recipe says if None.
        command: an artifact's name → the command line that repeats its verification, for its page;
            one that knows no recipe if None.

    Raises:
        CannotExecute: a package that cannot be read or run.
    """
    policy, asked = load_policy(), plan.recipe.verify
    if effort is not None:
        asked = asked.model_copy(update={"effort": effort})
    with Cache(out / ".cache") as cache:
        context = _context(plan, artifacts, asked, cache)
        proven = prove(context, artifacts, asked.effort, cache, progress or Silent())
        reports: list[dict[str, Any]] = []
        images: dict[str, bytes] = {}
        for artifact in artifacts:
            found = proven[artifact.manifest["artifact"]]
            document = _report(artifact, found, context, policy)
            reports.append(document)
            for path in image_paths(document):
                images[path] = found.images[path].read_bytes()
            _mark(cache, artifact, document)
        outcome = Outcome(tuple(reports))
        _write(cache, out / "reports", outcome, images, command)
    return outcome


def _context(plan: Plan, artifacts: Sequence[Result], asked: Verify, cache: Cache) -> ProofContext:
    """What all tasks share. Manifests have the digests of most files; the others are taken now."""
    components = dict.fromkeys(c for a in artifacts for c in a.manifest["components"])
    digests: dict[str, str] = {}
    half: dict[str, None] = {}
    for artifact in artifacts:
        digests |= artifact.manifest["source"]["files"]
        is_half = artifact.manifest["vae_precision"] == "float16"
        half |= {c: None for c in components if COMPONENTS[c].is_half or is_half}
    source = plan.checkpoint
    parts = {COMPONENTS[name].part for name in run_by(source, components)}
    wanted = {file for part in parts for file in source.parts[part].weight_files}
    unknown = {n: path for n, path in source.files.items() if path in wanted and n not in digests}
    taken = cache.digests(unknown.values())
    digests |= {name: taken[path] for name, path in unknown.items()}
    return ProofContext(
        checkpoint=plan.checkpoint,
        digests=digests,
        components=tuple(components),
        half=tuple(half),
        asked=asked,
        cache=cache.root,
    )


def _report(
    artifact: Result, proven: Proven, context: ProofContext, policy: Policy
) -> dict[str, Any]:
    """An artifact's report: what was found of it, judged by the recipe's gates."""
    manifest, asked = artifact.manifest, context.asked
    compression = manifest["compression"]
    results = Results(
        artifact=manifest["artifact"],
        attention=manifest["attention"],
        source=context.checkpoint.name,
        runtime=context.runtime.name,
        scope=context.runtime.scope + how_read(context.checkpoint),
        resolution=Resolution.parse(manifest["resolution"]),
        policy=policy.version,
        checks=proven.checks,
        versions=versions(),
        code=policy.made_by,
        bits=manifest["bits"],
        compressed=tuple(name for name, facts in compression.items() if facts["tensors"]),
        effort=asked.effort,
        evidence=proven.evidence,
        worst_ops={name: [*ops] for name, ops in proven.rounding.items()},
    )
    document = report.to_json(results, proven.generations)
    marks = {
        "fingerprint": manifest["fingerprint"],
        "asked": json.loads(asked.model_dump_json()),
    }
    gates = recipe_gates(asked.gates, document["bits"])
    return {**recheck(document, policy, gates), **marks}


def _mark(cache: Cache, artifact: Result, document: Mapping[str, Any]) -> None:
    """Write into an artifact's manifest what its verification came to."""
    marks = {name: document.get(name) for name in ("verdict", "effort", "evidence")}
    if any(artifact.manifest.get(name) != value for name, value in marks.items()):
        text = manifests.text({**artifact.manifest, **marks})
        cache.write_text(artifact.path / manifests.FILE, text)


def _write(
    cache: Cache,
    folder: Path,
    outcome: Outcome,
    images: Mapping[str, bytes],
    command: Callable[[str], str] | None,
) -> None:
    """Everything in `reports`: what is there as it should be stays as it is."""
    from verify.page.page import html, index_html

    for path, image in images.items():
        _put(cache, folder / path, image)
    for document in outcome.reports:
        name = document["artifact"]
        _put(cache, folder / f"{name}.json", _text(document).encode())
        own = {path: images[path] for path in image_paths(document)}
        page = html(document, own, index="index.html", command=command and command(name))
        _put(cache, folder / f"{name}.html", page.encode())
    _put(cache, folder / "summary.json", _text(outcome.document).encode())
    _put(cache, folder / "summary.md", summary_markdown(outcome.reports).encode())
    _put(cache, folder / "index.html", index_html(outcome.reports, images).encode())


def _put(cache: Cache, file: Path, data: bytes) -> None:
    """Write a file unless it is there with this content."""
    if not file.is_file() or file.read_bytes() != data:
        cache.write_bytes(file, data)


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
