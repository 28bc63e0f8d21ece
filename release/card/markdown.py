"""GitHub-flavoured Markdown, with every text escaped for the place it stands in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

# What CommonMark or GFM read as markup somewhere in a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#$])")


def escape(text: str) -> str:
    """`text` as plain text in a paragraph, a list item or a table's cell."""
    line = " ".join(text.split())
    escaped = _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;"))
    # A line must not start as a list or a rule does.
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped)


def code(text: str, *, in_table: bool = False) -> str:
    """`text` as inline code; in a table's cell a pipe needs a backslash even there."""
    line = " ".join(text.split())
    fence = "`" * (_longest(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    found = f"{fence}{pad}{line}{pad}{fence}"
    return found.replace("|", "\\|") if in_table else found


def prose(text: str) -> str:
    """A sentence of ours: escaped, but for `code` between single backticks."""
    parts = text.split("`")
    return "".join(code(part) if i % 2 else _inner(part) for i, part in enumerate(parts))


def _inner(text: str) -> str:
    """Escaped, with the spaces at its ends."""
    core = text.strip()
    return text.replace(core, escape(core), 1) if core else text


def block(text: str, language: str = "") -> str:
    """`text` as a fenced block, whatever fences it holds itself."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def link(text: str, target: str) -> str:
    """A link; `text` is escaped, `target` is a URL or a relative path."""
    return f"[{escape(text)}]({_target(target)})"


def image(text: str, target: str) -> str:
    """An image with its alternative text."""
    return f"![{escape(text)}]({_target(target)})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A table of cells that are Markdown already.

    Args:
        align: a letter for each column: l, r or c; left where it is too short.
    """
    marks = {"l": "---", "r": "---:", "c": ":---:"}
    rule = [marks[align[i]] if i < len(align) else "---" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def bullets(items: Sequence[str]) -> str:
    """A list of items that are Markdown already."""
    return "\n".join(f"- {item}" for item in items)


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _target(target: str) -> str:
    return quote(target, safe="/:?#@!$&'*+,;=%~.-_")
