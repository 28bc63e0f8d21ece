"""Verified artifacts → a release folder, with its card: the last stage of a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.cache import Cache
from convert.files.json_files import read_object
from convert.process.progress import Progress
from convert.recipe.recipe import Recipe
from convert.run import manifest as artifact_manifests
from release.card.card import compose, write_card
from release.card.samples import copy_samples
from release.card.source_card import SourceCard
from release.pack.bundle import finished_manifest, has_passed
from release.pack.pack import Packed, find_artifacts, pack, read_release
from release.pack.packable import NotVerified
from release.pack.stale import FILE as STALE
from release.pack.stale import Stale

__all__ = [
    "build_release",
    "find_artifacts",
    "mark_unless_confirmed",
    "of_last_run",
    "passing",
    "releasable",
]


def releasable(out: Path, recipe: Recipe) -> list[Path]:
    """The recipe's artifacts that are finished in `out` and passed this version's verification.

    So runs with --only add to one release instead of taking each other's archives away.
    """
    found = []
    for artifact in recipe.artifacts():
        path = out / artifact.name
        manifest = artifact_manifests.read_artifact(path)
        if manifest is None or manifest["recipe"]["text"] != recipe.text:
            continue
        if not artifact_manifests.is_complete(path, manifest):
            continue
        if has_passed(path, manifest):
            found.append(path)
    return found


def of_last_run(artifacts: Sequence[Path]) -> list[Path]:
    """Those artifacts of a folder that are of the same recipe as what the last run there made.

    All of them where there is only one recipe, or nothing tells which was the last.
    """
    recipes = {path: finished_manifest(path)["recipe"]["text"] for path in artifacts}
    try:
        summary = read_object(artifacts[0].resolve().parent / "reports" / "summary.json")
        last = {result["artifact"] for result in summary["results"]}
    except (InputError, KeyError, TypeError):
        return list(artifacts)
    wanted = {text for path, text in recipes.items() if path.name in last}
    return [path for path, text in recipes.items() if text in wanted or not wanted]


def passing(artifacts: Sequence[Path]) -> list[Path]:
    """The artifacts that passed this version's verification.

    Raises:
        NotVerified: none did.
    """
    found = [path for path in artifacts if has_passed(path, finished_manifest(path))]
    if not found:
        raise NotVerified(
            f"none of {len(artifacts)} artifacts passed its verification; nothing was packed"
        )
    return found


def mark_unless_confirmed(
    release: Path, recipe: Recipe, passed: Sequence[Path], failed: Sequence[str]
) -> str | None:
    """Mark a release as stale after a run that made none, unless all it holds passed in that run.

    Args:
        recipe: the run's.
        passed: the artifact folders that passed under it.
        failed: the names of the others, for whoever reads the mark; none where there was no room.

    Returns what became of it, in a line; None where there is no release.
    """
    stale = f"{release} is of an earlier run: it is marked stale, and `publish` refuses it."
    try:
        manifest = read_release(release)
    except Stale:
        return stale
    except InputError:
        return None
    found = (artifact_manifests.read(path) for path in passed)
    good = {made["fingerprint"] for made in found if made}
    held = {archive["manifest"]["fingerprint"] for archive in manifest["archives"]}
    if held <= good and manifest["recipe"]["text"] == recipe.text:
        return f"{release} is left as it is: all that it holds has passed."
    why = "there was no room for its archives.\n"
    if failed:
        why = "these did not pass their verification:\n"
        why += "".join(f"  {name}\n" for name in failed)
    text = (
        "This release is of an earlier run. The last one, into the same folder, made none, because "
        f"{why}Nothing was removed. Do not publish this; the next run that passes brings it up to "
        "date and removes this file.\n"
    )
    with Cache(release.parent / ".cache") as cache:
        cache.write_text(release / STALE, text)
    return stale


def build_release(
    artifacts: Sequence[Path],
    release: Path,
    *,
    reports: Path,
    source: SourceCard | None = None,
    licenses: Sequence[Path] = (),
    split: int | None = None,
    allow_unverified: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Pack the artifacts, and write the card over them. Raises as `release.pack.pack.pack`.

    Args:
        reports: the folder of the artifacts' reports, with the images that the card shows.
        source: the source model's card.
        licenses: the source's licence texts, which most licences want to travel with the model.
    """
    packed = pack(
        artifacts, release, split=split, allow_unverified=allow_unverified, progress=progress
    )
    add_card(release, packed.manifest, packed.reports, reports, source=source, licenses=licenses)
    return packed


def add_card(
    release: Path,
    manifest: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Any]],
    reports: Path,
    *,
    source: SourceCard | None = None,
    licenses: Sequence[Path] = (),
) -> None:
    """Write what a release has beside its archives for people: card, images, licences.

    Args:
        manifest: the release's.
        told: the reports of its artifacts, by name.
        reports, source, licenses: as `build_release` takes them.
    """
    for file in licenses:
        shutil.copyfile(file, release / file.name)
    samples = copy_samples(manifest, told, reports, release)
    write_card(release, compose(manifest, source=source, samples=samples))
