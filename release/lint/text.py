"""What lint found, for people: each app in a line, each finding with its effect and its remedy."""

from __future__ import annotations

from collections.abc import Sequence

from release.lint.lint import Lint
from release.lint.reading import Reading

MARKS = {"error": "✗", "warning": "!", "note": "·"}


def lint_text(results: Sequence[Lint]) -> str:
    """The results as text."""
    lines = []
    for result in results:
        lines.append(result.name)
        width = max((len(r.app) for r in result.readings), default=0)
        for reading in result.readings:
            lines.append(
                f"  {'✓' if reading.works else '✗'} {reading.app:<{width}}  {seen(reading)}"
            )
        for finding in result.findings:
            apps = f" ({', '.join(finding.apps)})" if finding.apps else ""
            lines.append(
                f"  {MARKS[finding.severity]} {finding.severity} {finding.rule}: "
                f"{finding.file}: {finding.problem}{apps}"
            )
            lines.append(f"      {finding.effect}. {finding.remedy}")
        if not result.findings:
            lines.append("  nothing wrong")
    errors = sum(result.errors for result in results)
    lines.append(f"{errors} error{'s' if errors != 1 else ''}")
    return "\n".join(lines)


def seen(reading: Reading) -> str:
    """What an app concludes, in a line."""
    if not reading.listed:
        return "does not list it"
    kind = {True: "SDXL", False: "not SDXL", None: None}[reading.is_sdxl]
    images = "image-to-image" if reading.image_to_image else "no image-to-image"
    size = reading.size or "size unknown"
    parts = [kind, reading.attention, size, images]
    text = ", ".join(part for part in parts if part)
    return text if reading.works else f"{text}; does not work"
