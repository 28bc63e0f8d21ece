"""Verified artifacts → a release folder, with its card: the last stage of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from convert import manifest as artifact_manifests
from convert.progress import Progress
from convert.recipe import Recipe
from release.bundle import find_report
from release.card import compose, write_card
from release.pack import Packed, find_artifacts, pack
from release.samples import copy_samples
from release.source_card import SourceCard

__all__ = ["build_release", "find_artifacts", "releasable"]


def releasable(out: Path, recipe: Recipe) -> list[Path]:
    """The recipe's artifacts that are finished in `out` and passed their verification.

    So runs with --only add to one release instead of taking each other's archives away.
    """
    found = []
    for artifact in recipe.artifacts():
        path = out / artifact.name
        manifest = artifact_manifests.read(path)
        if manifest is None or manifest["recipe"]["text"] != recipe.text:
            continue
        if not artifact_manifests.is_complete(path, manifest):
            continue
        report = find_report(path)
        if report is not None and report["verdict"] == "pass":
            found.append(path)
    return found


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
    """Pack the artifacts, and write the card over them. Raises as `release.pack.pack`.

    Args:
        reports: the folder of the artifacts' reports, with the images that the card shows.
        source: the source model's card.
        licenses: the source's licence texts, which most licences want to travel with the model.
    """
    packed = pack(
        artifacts, release, split=split, allow_unverified=allow_unverified, progress=progress
    )
    for file in licenses:
        shutil.copyfile(file, release / file.name)
    samples = copy_samples(packed.manifest, reports, release)
    write_card(release, compose(packed.manifest, source=source, samples=samples))
    return packed
