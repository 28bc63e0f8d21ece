"""The source model's own card: its text to copy, its front matter to ask for what the recipe leaves
open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.source.snapshot import Snapshot

MARK = "<!-- From here on: the source model's own card. -->"
# What a link or an image points to, in Markdown and in HTML.
_TARGET = re.compile(r"""(\]\(|(?:src|href)=["'])([^)"'\s]+)""")
_RELATIVE = re.compile(r"(?![a-zA-Z][a-zA-Z0-9+.-]*:|//|/|#)")


@dataclass(frozen=True)
class SourceCard:
    """A card without its front matter."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


def read_source_card(
    file: Path, *, repo: str | None = None, commit: str | None = None
) -> SourceCard | None:
    """The card in a checkpoint's README.md, or None if there is none.

    Args:
        repo: the Hub repo that it is of; links to its files are made absolute, at `commit`.
    """
    try:
        content = file.read_text("utf-8", errors="replace").removeprefix("\ufeff")
    except OSError:
        return None
    content = content.replace("\r\n", "\n")
    match = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", content, re.DOTALL)
    text = content[match.end() :] if match else content
    if repo:
        base = f"https://huggingface.co/{repo}/resolve/{commit or 'main'}/"
        text = _TARGET.sub(lambda m: m[1] + _absolute(m[2], base), text)
    return SourceCard(text.strip(), _data(match[1]) if match else {})


def source_texts(snapshot: Snapshot) -> tuple[SourceCard | None, list[Path]]:
    """The card of a checkpoint on this disk, with links that lead to its repo, and its licences."""
    folder = snapshot.path
    if folder.is_file():
        if snapshot.repo is None:
            return None, []  # a card beside it may be of another file
        folder = folder.parent
    licenses = sorted(path for path in folder.glob("LICENSE*") if path.is_file())
    card = folder / "README.md"
    return read_source_card(card, repo=snapshot.repo, commit=snapshot.commit), licenses


def copied_part(card: Path) -> SourceCard | None:
    """What an earlier card of a release has copied from the source's, or None."""
    whole = read_source_card(card)
    if whole is None or MARK not in whole.text:
        return None
    return SourceCard(whole.text.partition(MARK)[2].strip(), whole.data)


def _absolute(target: str, base: str) -> str:
    return base + target.removeprefix("./") if _RELATIVE.match(target) else target


def _data(text: str) -> dict[str, Any]:
    """The front matter; empty if it is no YAML mapping."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
