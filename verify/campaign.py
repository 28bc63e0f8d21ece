"""Verify every artifact of a run, and keep the reports beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.run import Result, write_manifest
from verify import report
from verify.checks import Verdict, worst
from verify.policy import load_policy
from verify.run import verify, versions
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
            "schema": report.SCHEMA,
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
    folder = out / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for artifact in artifacts:
        name = artifact.manifest["artifact"]
        file = folder / f"{name}.json"
        document = _still_true(file, artifact)
        if document is None:
            results = verify(
                artifact.path,
                checkpoint,
                components=list(artifact.manifest["components"]),
                progress=None if progress is None else _prefixed(progress, f"{name}: "),
            )
            document = {
                **report.to_json(results),
                "fingerprint": artifact.manifest["fingerprint"],
            }
            _write(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        if artifact.manifest["verdict"] != document["verdict"]:
            write_manifest(artifact.path, {**artifact.manifest, "verdict": document["verdict"]})
        reports.append(document)
    outcome = Outcome(tuple(reports))
    summary = json.dumps(outcome.document, indent=2, ensure_ascii=False) + "\n"
    _write(folder / "summary.json", summary)
    _write(folder / "summary.md", summary_markdown(outcome.reports))
    return outcome


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


def _write(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, "utf-8")
    new.replace(file)
