"""What `convert`'s options stand for: a recipe."""

from __future__ import annotations

import json
from pathlib import Path

from convert.download import parse_source


def recipe_text(
    source: str,
    revision: str | None,
    attention: list[str] | None,
    resolution: list[str] | None,
    bits: list[str] | None,
    group_size: int | None,
    allocation: Path | None,
    deployment_target: str,
    vae_precision: str,
) -> str:
    """The recipe that `convert`'s options stand for."""
    found = parse_source(source, revision)
    name = Path(found.location).resolve().name if found.kind == "path" else found.location
    lines = [f"name = {json.dumps(name.rpartition('/')[2])}", "[source]"]
    lines.append(f"{found.kind} = {json.dumps(found.location)}")
    if found.revision:
        lines.append(f"revision = {json.dumps(found.revision)}")
    lines.append("[matrix]")
    lines.append(f"attention = {json.dumps(attention or ['original'])}")
    lines.append(f"resolution = {json.dumps(resolution or ['1024x1024'])}")
    lines.append(f"bits = {json.dumps(bits or ['16'])}")
    lines.append("[compress]")
    if group_size is not None:
        lines.append(f"group_size = {group_size}")
    if allocation is not None:
        lines.append(f"allocation = {json.dumps(str(allocation))}")
    lines.append("[target]")
    lines.append(f"deployment = {json.dumps(deployment_target)}")
    lines.append(f"vae_precision = {json.dumps(vae_precision)}")
    return "\n".join(lines) + "\n"
