"""A baseline: results that a person accepted, with the reason, for later ones to be compared with.

The file is JSON with one check per line, so that a change of it can be read in a review. It has no
date and no path: accepting the same results for the same reason gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.appearing import appearing
from convert.files.json_files import read_json
from verify.judge.checks import worst
from verify.judge.gates import TENSOR_METRICS
from verify.reports.figures import place
from verify.reports.saved import Report, read_reports, reports_of

# The keys of a report that a comparison needs; pictures and curves stay with the report.
KEPT = (
    "schema",
    "verdict",
    "artifact",
    "source",
    "resolution",
    "bits",
    "compressed",
    "runtime",
    "scope",
    "policy",
    "versions",
    "code",
    "fingerprint",
    "effort",
    "evidence",
    "checks",
)
DIGITS = 7  # significant ones; the rest is noise in every review


def bless(reports: Sequence[Report], reason: str) -> dict[str, Any]:
    """The results as a baseline.

    Raises:
        InputError: there is no reason, or the results cannot be a baseline: they did not pass,
            something is not finite or all zeros, or no outputs were compared.
    """
    if not reason.strip():
        raise InputError("a baseline needs a reason", hint="Say why these results are right.")
    if not reports:
        raise InputError("there are no results to accept")
    names = [report["artifact"] for report in reports]
    for report in reports:
        if names.count(report["artifact"]) > 1:
            raise InputError("two results are of the same artifact", where=report["artifact"])
        _require_sound(report)
    kept = [_rounded({key: r[key] for key in KEPT if key in r}) for r in reports]
    return {
        "schema": 1,
        "kind": "baseline",
        "reason": reason.strip(),
        "verdict": "pass",
        "policies": sorted({report["policy"] for report in reports}),
        "digest": digest(kept),
        "reports": kept,
    }


def _require_sound(report: Report) -> None:
    """Raise InputError for results that nothing should be compared with."""
    name, checks = report["artifact"], report["checks"]
    for check in checks:
        if check["verdict"] != "pass":
            raise InputError(
                f"{check['verdict']}: {check['message'] or check['gate']}",
                where=place(check, name),
                hint="Only results that passed can be a baseline.",
            )
        metrics = check["metrics"]
        if metrics is None:
            continue
        if metrics.get("finite") is not True:
            raise InputError("not finite", where=place(check, name))
        for metric in TENSOR_METRICS:
            if metrics.get(metric) in (None, "-inf"):
                raise InputError(
                    f"{metric} is {metrics.get(metric)}: one side is all zeros, or was not "
                    "measured",
                    where=place(check, name),
                )
    if worst(c["verdict"] for c in checks) != report["verdict"]:
        raise InputError(f"says {report['verdict']}, its checks do not", where=name)
    if not any(check["metrics"] for check in checks):
        raise InputError(
            "no outputs were compared, so there are no numbers to keep",
            where=name,
            hint="Verify level conversion, too.",
        )


def digest(reports: Iterable[Report]) -> str:
    """SHA-256 of results, whatever their layout in a file."""
    text = json.dumps(list(reports), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_baseline(path: Path, artifact: str | None = None) -> tuple[Report, ...]:
    """The reports of a baseline, or of any results.

    Args:
        artifact: only its report; a baseline of one artifact is for whatever it is compared with.

    Raises:
        InputError: it cannot be read, was edited after it was accepted, or lacks the artifact.
    """
    document = {} if path.is_dir() else read_json(path)
    reports = reports_of(document, path) if document else read_reports(path)
    if document.get("kind") == "baseline" and document.get("digest") != digest(reports):
        raise InputError(
            "its results are not those that were accepted: the digest differs",
            where=path,
            hint="Accept new results with `sdxl-coreml bless`.",
        )
    if artifact is None or len(reports) == 1:
        return reports
    found = tuple(report for report in reports if report["artifact"] == artifact)
    if not found:
        names = ", ".join(report["artifact"] for report in reports)
        raise InputError(f"has no artifact `{artifact}`; it has {names}", where=path)
    return found


def write_baseline(path: Path, baseline: dict[str, Any]) -> None:
    """Write a baseline; the old one stays until the new one is complete.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with appearing(path) as new:
            new.write_text(text(baseline), "utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=path) from None


def text(baseline: dict[str, Any]) -> str:
    """The file: JSON, with every check on a line of its own."""
    lines = []
    for report in baseline["reports"]:
        checks = ",\n   ".join(_line(check) for check in report["checks"])
        rest = {key: value for key, value in report.items() if key != "checks"}
        lines.append(f'  {_line(rest)[:-1]}, "checks": [\n   {checks}\n  ]}}')
    head = [f" {_line(k)}: {_line(v)}" for k, v in baseline.items() if k != "reports"]
    return "{\n" + ",\n".join(head) + ',\n "reports": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
