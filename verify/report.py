"""Results as JSON, terminal table, JUnit XML and Markdown. JSON is the source of the others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from verify.checks import Check, Results, Verdict, worst
from verify.image_metrics import PSNR
from verify.metrics import SNR, json_number
from verify.pictures import file_name, generation_json, png

SCHEMA = 1
MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "indeterminate": "?"}
STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "indeterminate": "yellow"}


def to_json(results: Results) -> dict[str, Any]:
    """The results as plain JSON values, the same for the same results.

    Numbers that JSON cannot say are the strings "inf" and "-inf"; what is undefined is null.
    `fp16_snr_db` and `fp16_nrmse` are PyTorch float16's on the same inputs and
    `fp16_error_ratio` is our error over that floor, all null where the component does not compute
    in float16. So results can be judged again, under another policy, from their JSON alone.
    """
    return {
        "schema": SCHEMA,
        "verdict": results.verdict,
        "artifact": results.artifact,
        "source": results.source,
        "resolution": None if results.resolution is None else str(results.resolution),
        "bits": results.bits,
        "runtime": results.runtime,
        "scope": results.scope,
        "policy": results.policy,
        "versions": dict(sorted(results.versions.items())),
        "checks": [_check(check) for check in results.checks],
        **_generations(results),
        **({"worst_ops": dict(results.worst_ops)} if results.worst_ops else {}),
    }


def pictures(results: Results) -> dict[str, bytes]:
    """The PNG files that the JSON report names, by their path beside it."""
    images = [
        image
        for made in results.generations
        for image in (made.reference, made.candidate, made.start)
        if image is not None
    ]
    return {file_name(image): png(image) for image in images}


def _generations(results: Results) -> dict[str, Any]:
    if not results.generations:
        return {}
    return {"generations": [generation_json(made) for made in results.generations]}


def json_text(results: Results) -> str:
    """The results as a JSON document."""
    return json.dumps(to_json(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check(check: Check) -> dict[str, Any]:
    metrics = None
    if check.metrics is not None:
        metrics = check.metrics.to_json()
        fp16 = check.fp16
        metrics["fp16_snr_db"] = None if fp16 is None else json_number(fp16.snr_db)
        metrics["fp16_nrmse"] = None if fp16 is None else json_number(fp16.nrmse)
        ratio = check.fp16_error_ratio
        metrics["fp16_error_ratio"] = None if ratio is None else json_number(ratio)
        if check.likeness is not None:
            metrics |= check.likeness.to_json()
    return {
        "level": check.level,
        "component": check.component,
        "case": check.case,
        "output": check.output,
        "metrics": metrics,
        "gate": check.gate,
        "verdict": check.verdict,
        "message": check.message,
    }


# ---- for people ----


def rows(results: Results) -> list[tuple[Verdict, str, str, str, str]]:
    """(verdict, level, component, measured, problem) for each component and level."""
    found = []
    for (level, component), checks in _grouped(results.checks).items():
        bad = [c for c in checks if c.verdict != "pass"]
        problem = f"{bad[0].case}: {bad[0].message}" if bad else ""
        if len(bad) > 1:
            problem += f" (and {len(bad) - 1} more)"
        found.append(
            (worst(c.verdict for c in checks), level, component, _measured(checks), problem)
        )
    return found


def _grouped(checks: Iterable[Check]) -> dict[tuple[str, str], list[Check]]:
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.level, check.component), []).append(check)
    return groups


def _measured(checks: list[Check]) -> str:
    """The worst SNR of some checks, and where; or how many there are."""
    compared = [c for c in checks if c.metrics is not None]
    if not compared:
        return f"{len(checks)} checks"
    lowest = min(compared, key=_snr)
    text = f"SNR ≥ {decibels(_snr(lowest))} ({lowest.case}, {lowest.output})"
    if lowest.fp16 is not None:
        text += f"; PyTorch fp16 {decibels(lowest.fp16.snr_db)}"
    if likest := [c.likeness for c in compared if c.likeness is not None]:
        text += f"; PSNR ≥ {decibels(min(found.psnr_db for found in likest))}"
        ssim = [found.ssim for found in likest if found.ssim is not None]
        text += f", SSIM ≥ {min(ssim):.4f}" if len(ssim) == len(likest) else ", SSIM not measured"
    return text


def _snr(check: Check) -> float:
    assert check.metrics is not None
    return check.metrics.snr_db if check.metrics.finite else -math.inf


def decibels(value: float) -> str:
    """A level in dB with one decimal."""
    return f"{value:.1f} dB"


def headline(results: Results) -> str:
    """Verdict, artifact and numbers of checks in one line."""
    counts = f"{len(results.checks)} checks"
    if results.failures:
        counts += f", {len(results.failures)} failed"
    return f"{results.verdict}: {results.artifact} against {results.source} ({counts})"


def footnotes(results: Results) -> tuple[str, str]:
    """What the numbers mean, and what they do not prove."""
    measures = f"{SNR}, {PSNR}" if results.generations else SNR
    return (
        f"{measures}, against PyTorch float32 on recorded inputs; policy {results.policy}.",
        f"Scope: {results.scope}.",
    )


def table(results: Results) -> Any:
    """The results as a rich renderable: a row for each component and level, failures below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    view = Table("", "level", "component", "measured", box=None, pad_edge=False)
    for verdict, level, component, measured, _ in rows(results):
        view.add_row(Text(MARKS[verdict], STYLES[verdict]), level, component, Text(measured))
    parts: list[Any] = [view]
    for check in results.checks:
        if check.verdict != "pass":
            mark = f"{MARKS[check.verdict]} {check.place}: {check.message} (asked: {check.gate})"
            parts.append(Text(mark, STYLES[check.verdict]))
    parts += [Text(headline(results), STYLES[results.verdict])]
    parts += [Text(line, "dim") for line in footnotes(results)]
    return Group(*parts)


def markdown(results: Results) -> str:
    """A summary for a CI job's page."""
    lines = [
        f"### {MARKS[results.verdict]} {results.artifact}: {results.verdict}",
        "",
        "| | level | component | measured | problem |",
        "|---|---|---|---|---|",
    ]
    for verdict, *cells in rows(results):
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
        lines.append(f"| {MARKS[verdict]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in footnotes(results))]).rstrip() + "\n"


def junit(results: Results) -> str:
    """JUnit XML with one case per component × level × case.

    An indeterminate case is an error, because CI systems count a skipped one as fine.
    """
    cases: dict[tuple[str, str, str], list[Check]] = {}
    for check in results.checks:
        cases.setdefault((check.level, check.component, check.case), []).append(check)
    verdicts = {key: worst(c.verdict for c in checks) for key, checks in cases.items()}
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(v == "fail" for v in verdicts.values())),
        "errors": str(sum(v == "indeterminate" for v in verdicts.values())),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": results.artifact, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"runtime": results.runtime, "scope": results.scope, "snr": SNR}
    for name, value in (facts | ({"psnr": PSNR} if results.generations else {})).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for (level, component, case), checks in cases.items():
        element = ElementTree.SubElement(
            suite, "testcase", {"classname": f"{level}.{component}", "name": case}
        )
        bad = [c for c in checks if c.verdict != "pass"]
        if bad:
            kind = "failure" if verdicts[level, component, case] == "fail" else "error"
            text = "\n".join(f"{c.output or c.case}: {c.message} (asked: {c.gate})" for c in bad)
            ElementTree.SubElement(element, kind, {"message": bad[0].message}).text = text
        elif any(c.metrics for c in checks):
            ElementTree.SubElement(element, "system-out").text = _measured(checks)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
