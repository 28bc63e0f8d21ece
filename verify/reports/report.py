"""Results as JSON, terminal table, JUnit XML and Markdown. JSON is the source of the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from convert.values import Verdict
from verify.judge.checks import Check, Results, worst
from verify.judge.image_metrics import PSNR
from verify.judge.metrics import SNR, json_number
from verify.reports import figures
from verify.reports.evidence import how_verified
from verify.reports.figures import FIGURES, MEANINGS, Json, decibels
from verify.reports.images import file_name, generation_json, png

if TYPE_CHECKING:
    from verify.levels.generation import Generation

SCHEMA = 1
MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "indeterminate": "?"}
STYLES: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "indeterminate": "yellow"}


def to_json(results: Results, generations: Sequence[Json] | None = None) -> dict[str, Any]:
    """The results as plain JSON values, the same for the same results.

    Numbers that JSON cannot say are the strings "inf" and "-inf"; what is undefined is null.
    `fp16_snr_db` and `fp16_nrmse` are PyTorch float16's on the same inputs and
    `fp16_error_ratio` is our error over that floor, all null where the component does not compute
    in float16. So results can be judged again, under another policy, from their JSON alone.
    `snr_db`, `program_snr_db` and `components` are the figures of `verify.reports.figures`.

    Args:
        generations: the pictures as `generation_json` has them; those of the results if None.
    """
    checks = [_check(check) for check in results.checks]
    document = {
        "schema": SCHEMA,
        "verdict": results.verdict,
        "artifact": results.artifact,
        "source": results.source,
        "resolution": None if results.resolution is None else str(results.resolution),
        "attention": results.attention,
        "bits": results.bits,
        "compressed": list(results.compressed),
        "runtime": results.runtime,
        "scope": results.scope,
        "policy": results.policy,
        "versions": dict(sorted(results.versions.items())),
        "code": dict(results.code),
        **({} if results.effort is None else {"effort": results.effort}),
        **({"evidence": dict(results.evidence)} if results.evidence else {}),
        "checks": checks,
        **_generations(results, generations),
        **({"worst_ops": dict(results.worst_ops)} if results.worst_ops else {}),
    }
    return document | figures.figures_json(document)


def pictures(results: Results) -> dict[str, bytes]:
    """The PNG files that the JSON report names, by their path beside it."""
    return pictures_of(results.generations)


def pictures_of(generations: Iterable[Generation]) -> dict[str, bytes]:
    """The same of some whole runs."""
    images = [
        image
        for made in generations
        for image in (made.reference, made.candidate, made.start)
        if image is not None
    ]
    return {file_name(image): png(image) for image in images}


def _generations(results: Results, made: Sequence[Json] | None) -> dict[str, Any]:
    made = made if made is not None else [generation_json(one) for one in results.generations]
    return {"generations": [*made]} if made else {}


def _check(check: Check) -> dict[str, Any]:
    metrics = None
    if check.metrics is not None:
        metrics = check.metrics.to_json()
        fp16 = check.fp16
        metrics["fp16_snr_db"] = None if fp16 is None else json_number(fp16.snr_db)
        metrics["fp16_nrmse"] = None if fp16 is None else json_number(fp16.nrmse)
        ratio = check.fp16_error_ratio
        metrics["fp16_error_ratio"] = None if ratio is None else json_number(ratio)
        if check.similarity is not None:
            metrics |= check.similarity.to_json()
    return {
        "level": check.level,
        "component": check.component,
        "case": check.case,
        "output": check.output,
        "metrics": metrics,
        "gate": check.gate,
        "verdict": check.verdict,
        "message": check.message,
        **({} if check.size is None else {"size": str(check.size)}),
    }


# ---- for people ----


def rows(document: Json) -> list[tuple[Verdict, str, str, str, str]]:
    """(verdict, level, component, measured, problem) for each component and level."""
    found = []
    for (level, component), checks in _grouped(document["checks"]).items():
        bad = [c for c in checks if c["verdict"] != "pass"]
        problem = f"{figures.case_text(bad[0])}: {figures.problem(bad[0])}" if bad else ""
        if len(bad) > 1:
            problem += f" (and {len(bad) - 1} more)"
        verdict = worst(c["verdict"] for c in checks)
        found.append((verdict, level, component, _measured(checks), problem))
    return found


def _grouped(checks: Iterable[Json]) -> dict[tuple[str, str], list[Json]]:
    groups: dict[tuple[str, str], list[Json]] = {}
    for check in checks:
        groups.setdefault((check["level"], check["component"]), []).append(check)
    return groups


def _measured(checks: Sequence[Json]) -> str:
    """The worst of some checks of one component and level, each kind of number by its name; how
    many there are, where nothing was measured."""
    found = figures.by_kind(checks)
    if not found:
        return str(figures.count(checks))
    return "; ".join(f"{kind}: {_worst(of)}" for kind, of in found.items())


def _worst(checks: Sequence[Json]) -> str:
    """The lowest SNR, and where; beside it the number that failed, if that is another."""
    lowest = figures.lowest(checks)
    assert lowest is not None
    where = ", ".join(p for p in (figures.case_text(lowest), lowest["output"]) if p)
    text = f"lowest SNR {figures.snr_text(lowest)} ({where})"
    if lowest["metrics"].get("fp16_snr_db") is not None:
        text += f"; PyTorch fp16 {decibels(lowest['metrics']['fp16_snr_db'])}"
    for name, unit, digits in (("psnr_db", "dB", 1), ("ssim", "", 4)):
        if name in lowest["metrics"]:
            values = [c["metrics"][name] for c in checks if c["metrics"].get(name) is not None]
            all_of = len(values) == len(checks)
            value = figures.show(min(values, key=float), digits, unit) if all_of else None
            text += f", lowest {name.removesuffix('_db').upper()} {value or figures.NOT_MEASURED}"
    others = [(g, v) for c in checks for g, v in figures.shortfalls(c) if g.metric != "snr_db"]
    for metric in dict.fromkeys(g.metric for g, _ in others if g.metric not in text):
        text += f"; {metric} of {sum(g.metric == metric for g, _ in others)} not as asked"
    return text


def headline(document: Json) -> str:
    """Verdict, artifact and numbers of checks in one line."""
    counts = figures.count(document["checks"])
    return f"{document['verdict']}: {document['artifact']} against {document['source']} ({counts})"


def footnotes(document: Json) -> list[str]:
    """What was done, the figures, what the numbers mean, and what they do not prove."""
    how = [how_verified(document).sentence()] if document.get("evidence") else []
    measures = f"{SNR}, {PSNR}" if document.get("generations") else SNR
    line = figures.figures_line(document)
    return [
        *how,
        *([f"{line}."] if line else []),
        f"{measures}, on recorded inputs; policy {document['policy']}.",
        *[f"{name}: {MEANINGS[name]}." for name in FIGURES if line],
        f"Scope: {document['scope']}.",
    ]


def table(results: Results) -> Any:
    """The results as a rich renderable: a row for each component and level, failures below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    document = to_json(results)
    view = Table("", "level", "component", "measured", box=None, pad_edge=False)
    for verdict, level, component, measured, _ in rows(document):
        view.add_row(Text(MARKS[verdict], STYLES[verdict]), level, component, Text(measured))
    parts: list[Any] = [view, *failures(document)]
    parts += [Text(headline(document), STYLES[results.verdict])]
    parts += [Text(line, "dim") for line in footnotes(document)]
    return Group(*parts)


def failures(document: Json, artifact: str = "") -> list[Any]:
    """A line for a terminal of each check that did not pass, with its level, number and gate."""
    from rich.text import Text

    return [
        Text(
            f"{MARKS[c['verdict']]} {figures.place(c, artifact)}: {figures.problem(c)}",
            STYLES[c["verdict"]],
        )
        for c in document["checks"]
        if c["verdict"] != "pass"
    ]


def markdown(results: Results) -> str:
    """A summary for a CI job's page."""
    document = to_json(results)
    lines = [
        f"### {MARKS[results.verdict]} {results.artifact}: {results.verdict} "
        f"({figures.count(document['checks'])})",
        "",
        "| | level | component | measured | problem |",
        "|---|---|---|---|---|",
    ]
    for verdict, *cells in rows(document):
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
        lines.append(f"| {MARKS[verdict]} | {' | '.join(cells)} |")
    notes = (f"{line}  " for line in footnotes(document))
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def junit(results: Results) -> str:
    """JUnit XML with one case per check, so that its counts are the report's.

    Cases are named by the check's case, and by the output where a case has several. An
    indeterminate case is an error, because CI systems count a skipped one as fine.
    """
    document = to_json(results)
    checks = document["checks"]
    counts = figures.count(checks)
    numbers = {
        "tests": str(counts.total),
        "failures": str(counts.failed),
        "errors": str(counts.undecided),
    }
    root = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(root, "testsuite", {"name": results.artifact, **numbers})
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"runtime": results.runtime, "scope": results.scope, "snr": SNR}
    for figure in FIGURES:
        facts[f"{figure} snr"] = figures.said(figures.figure(figure, document))
        facts[f"{figure} means"] = MEANINGS[figure]
    if document.get("evidence"):
        how = how_verified(document)
        facts |= {
            "effort": how.effort or "",
            "evidence": how.short,
            "evidence means": how.sentence(),
        }
    for name, value in (facts | ({"psnr": PSNR} if results.generations else {})).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for check, name in zip(checks, _case_names(checks), strict=True):
        element = ElementTree.SubElement(
            suite, "testcase", {"classname": f"{check['level']}.{check['component']}", "name": name}
        )
        if check["verdict"] != "pass":
            what = "failure" if check["verdict"] == "fail" else "error"
            message = f"{figures.place(check)}: {figures.problem(check)}"
            ElementTree.SubElement(element, what, {"message": message}).text = message
        elif check["metrics"]:
            ElementTree.SubElement(element, "system-out").text = _measured([check])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case_names(checks: Sequence[Json]) -> list[str]:
    """A name for each check that no other of its component and level has."""
    outputs: dict[tuple[str, str, str], set[str]] = {}
    for c in checks:
        case = figures.case_text(c)
        outputs.setdefault((c["level"], c["component"], case), set()).add(c["output"])
    names, seen = [], dict[tuple[str, str, str], int]()
    for c in checks:
        case = figures.case_text(c)
        several = len(outputs[c["level"], c["component"], case]) > 1
        name = f"{case} {c['output']}" if several and c["output"] else case
        key = (c["level"], c["component"], name)
        seen[key] = again = seen.get(key, 0) + 1
        names.append(name if again == 1 else f"{name} ({again})")
    return names
