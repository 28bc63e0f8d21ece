"""A publication as JSON and for people, and the repo that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.recipe.fields import require_hub_repo
from convert.recipe.recipe import Recipe, parse_recipe
from convert.units import size
from release.pack.pack import read_release
from release.publish.publish import Publication
from release.publish.sending import Upload

MARKS = {"new": "+", "changed": "~", "unchanged": "=", "unknown": "?"}


def wanted_repo(folder: Path, repo: str | None, recipe: Recipe | None = None) -> str:
    """The repo that is named, or else the recipe's. Raises InputError without one.

    Args:
        folder: a release; or any folder, whose recipe is given.
    """
    if recipe is None:
        recipe = parse_recipe(read_release(folder)["recipe"]["text"], where="recipe")
    found = repo or recipe.release.repo
    if found is None:
        raise InputError(
            "no repo to publish to",
            where=folder,
            hint="Give --repo owner/name, or `repo` in the recipe's [release].",
        )
    require_hub_repo(found)
    return found


def publication_document(found: Publication, *, dry_run: bool) -> dict[str, Any]:
    """The publication as JSON."""
    return {
        "schema": 1,
        "dry_run": dry_run,
        "repo": found.repo,
        "creates_repo": found.creates_repo,
        "parent_commit": found.commit,
        "files": [
            {
                "path": u.path,
                "size": u.size,
                "change": u.change,
                "received": u.received,
                "made": u.is_made,
            }
            for u in found.uploads
        ],
        "bytes": found.bytes,
        "left": list(found.left),
        "url": found.url,
    }


def publication_text(found: Publication, *, dry_run: bool, pull_request: bool) -> str:
    """The publication for people: each file with what happens to it."""
    width = max(len(u.path) for u in found.uploads)
    lines = [
        f"{MARKS[u.change]} {u.path:<{width}}  {_size(u):>8}  {_change(u)}" for u in found.uploads
    ]
    lines += [f"  {name}: stays in the repo, not of this release" for name in found.left]
    kind = "a pull request" if pull_request else "a commit"
    if not found.changes:
        lines.append(f"{found.repo} has all of it already; nothing to send")
    elif dry_run:
        repo = " (which would be created)" if found.creates_repo else ""
        count = len(found.changes)
        # An archive to come is no larger than foretold; of others the Hub may have received some.
        is_exact = all(u.is_made and (u.file or u.content) for u in found.changes)
        at_most = "" if is_exact else "at most "
        lines.append(
            f"Would send {count} files, {at_most}{size(found.bytes)}, to {found.repo}{repo} as "
            f"{kind}; nothing was sent"
        )
    else:
        lines.append(f"{found.url}: {len(found.changes)} files, {size(found.bytes)}, as {kind}")
    return "\n".join(lines)


def _size(upload: Upload) -> str:
    return "–" if upload.size is None else size(upload.size)


def _change(upload: Upload) -> str:
    """What becomes of a file, and whether that is known before it is made."""
    if upload.received:
        return f"{upload.change}, received earlier"
    if upload.change == "unknown":
        return "sent if it is not the one that is there"
    return upload.change if upload.is_made else f"{upload.change}, yet to be made"
