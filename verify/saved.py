"""Results read back from JSON: one report, a run's `reports` folder, its summary, or a baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from convert.errors import InputError
from verify.checks import Verdict
from verify.report import SCHEMA

Report = dict[str, Any]  # as `verify.report.to_json` makes it
SUMMARY = "summary.json"
VERDICTS = get_args(Verdict)
TEXTS = ("artifact", "source", "runtime", "scope", "policy")


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
        return tuple(_report(_read(file), str(file)) for file in files)
    document = _read(path)
    if not isinstance(document, dict):
        raise InputError("holds no JSON object", where=path)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"`schema` is {document.get('schema')!r}, this tool reads {SCHEMA}", where=path
        )
    if "checks" in document:
        return (_report(document, str(path)),)
    if "reports" in document:  # a baseline, or what `recheck --json` writes of several
        found = document["reports"]
        if not isinstance(found, list) or not found:
            raise InputError("`reports` is empty", where=path)
        return tuple(_report(r, f"{path}: report {n}") for n, r in enumerate(found, 1))
    if "results" in document:  # the summary: the reports are beside it
        names = [str(r.get("artifact")) for r in document["results"] if isinstance(r, dict)]
        files = [path.with_name(f"{name}.json") for name in names]
        if not files:
            raise InputError("the summary names no artifact", where=path)
        return tuple(_report(_read(file), str(file)) for file in files)
    raise InputError("holds no results of a verification", where=path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from None
    except ValueError as error:
        raise InputError(f"not readable as JSON: {error}", where=path) from None


def _report(report: Any, where: str) -> Report:
    if not isinstance(report, dict):
        raise InputError("is no object", where=where)
    if report.get("schema") != SCHEMA:
        raise InputError(
            f"`schema` is {report.get('schema')!r}, this tool reads {SCHEMA}", where=where
        )
    for key in TEXTS:
        if not isinstance(report.get(key), str):
            raise InputError(f"`{key}` is {report.get(key)!r}, not a text", where=where)
    checks = report.get("checks")
    if not isinstance(checks, list) or not checks:
        raise InputError("there are no checks: nothing looked at is never a pass", where=where)
    for number, check in enumerate(checks, 1):
        _check(check, f"{where}: check {number}")
    _one_of(report.get("verdict"), where)
    return report


def _check(check: Any, where: str) -> None:
    if not isinstance(check, dict):
        raise InputError("is no object", where=where)
    for key in ("level", "component", "case", "gate", "message"):
        if not isinstance(check.get(key), str):
            raise InputError(f"`{key}` is {check.get(key)!r}, not a text", where=where)
    for key in ("output", "metrics"):
        if key not in check:
            raise InputError(f"`{key}` is missing", where=where)
    if not isinstance(check["output"], str | None):
        raise InputError(f"`output` is {check['output']!r}, not a text", where=where)
    metrics = check["metrics"]
    if not isinstance(metrics, dict | None):
        raise InputError("`metrics` is no object", where=where)
    for name, value in (metrics or {}).items():
        numeric = value is None or isinstance(value, int | float) or value in ("inf", "-inf")
        if not numeric and name != "max_index":
            raise InputError(f"`{name}` is {value!r}, not a number", where=where)
    _one_of(check.get("verdict"), where)


def _one_of(verdict: Any, where: str) -> None:
    if verdict not in VERDICTS:
        known = ", ".join(VERDICTS)
        raise InputError(f"`verdict` is {verdict!r}; known are {known}", where=where)


def as_document(reports: Sequence[Report], verdict: Verdict) -> dict[str, Any]:
    """One report as it is, several as one JSON object that `read_reports` reads again."""
    if len(reports) == 1:
        return reports[0]
    return {"schema": SCHEMA, "verdict": verdict, "reports": list(reports)}
