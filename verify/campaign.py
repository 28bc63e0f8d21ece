"""Verify every artifact of a run, and keep the reports beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import manifest as manifests
from convert.cache import Cache
from convert.checkpoint import Checkpoint
from convert.interrupts import deferred_interrupt
from convert.run import Result
from verify.checks import Verdict, versions, worst
from verify.policy import load_policy
from verify.report import SCHEMA
from verify.summary import lowest_snr, summary_markdown, summary_table

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "indeterminate": 3}


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
            "results": [
                {
                    "artifact": r["artifact"],
                    "verdict": r["verdict"],
                    "snr_db": lowest_snr(r),
                    "failures": [c for c in r["checks"] if c["verdict"] != "pass"],
                }
                for r in self.reports
            ],
        }

    def exit_code(self, *, strict: bool = False) -> int:
        """0 pass, 1 fail, 3 indeterminate (1 if `strict`)."""
        code = EXIT_CODES[self.verdict]
        return 1 if strict and code == 3 else code

    def table(self) -> Any:
        """The summary for a terminal: a row for each artifact, a column for each component."""
        return summary_table(self.reports)


def verify_all(
    out: Path,
    artifacts: Sequence[Result],
    checkpoint: Checkpoint,
    *,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Verify the artifacts and write `out/reports`; a report that is still true is kept.

    Raises:
        CannotExecute: a package that cannot be read or run.
    """
    reports = []
    with Cache(out / ".cache") as cache:
        for artifact in artifacts:
            name = artifact.manifest["artifact"]
            file = out / "reports" / f"{name}.json"
            document = _still_true(file, artifact)
            if document is None:
                say = None if progress is None else _prefixed(progress, f"{name}: ")
                document = _verify(artifact, checkpoint, say)
                cache.write_text(file, _text(document))
            if artifact.manifest["verdict"] != document["verdict"]:
                manifest = {**artifact.manifest, "verdict": document["verdict"]}
                cache.write_text(artifact.path / manifests.FILE, manifests.text(manifest))
            reports.append(document)
        outcome = Outcome(tuple(reports))
        cache.write_text(out / "reports" / "summary.json", _text(outcome.document))
        cache.write_text(out / "reports" / "summary.md", summary_markdown(outcome.reports))
    return outcome


def _verify(
    artifact: Result, checkpoint: Checkpoint, progress: Callable[[str], None] | None
) -> dict[str, Any]:
    with deferred_interrupt():  # torch is only imported where there is something to verify
        from verify.report import to_json
        from verify.run import verify
    results = verify(
        artifact.path,
        checkpoint,
        components=list(artifact.manifest["components"]),
        progress=progress,
    )
    return {**to_json(results), "fingerprint": artifact.manifest["fingerprint"]}


def _still_true(file: Path, artifact: Result) -> dict[str, Any] | None:
    """The report, if it is of these very files, this policy and these versions."""
    try:
        document = json.loads(file.read_text("utf-8"))
        same = (
            document["fingerprint"] == artifact.manifest["fingerprint"]
            and document["policy"] == load_policy().version
            and document["versions"] == versions()
        )
        return dict(document) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: progress(prefix + text)


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
