"""What lint found, for people: each app in a line, each finding with its effect and its remedy."""

from __future__ import annotations

from collections.abc import Sequence

from release.lint.app_view import AppView
from release.lint.lint import Lint

MARKS = {"error": "✗", "warning": "!", "note": "·"}


def lint_text(results: Sequence[Lint]) -> str:
    """The results as text."""
    lines = []
    for result in results:
        lines.append(result.name)
        width = max((len(r.app) for r in result.views), default=0)
        for view in result.views:
            lines.append(f"  {'✓' if view.works else '✗'} {view.app:<{width}}  {seen(view)}")
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


def seen(view: AppView) -> str:
    """What an app concludes, in a line."""
    if not view.listed:
        return "does not list it"
    kind = {True: "SDXL", False: "not SDXL", None: None}[view.is_sdxl]
    images = "image-to-image" if view.image_to_image else "no image-to-image"
    size = view.size or "size unknown"
    parts = [kind, view.attention, size, images]
    text = ", ".join(part for part in parts if part)
    return text if view.works else f"{text}; does not work"
