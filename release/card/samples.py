"""Sample images for the card: those that the verification made, copied beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from release.card.card import Sample
from release.pack.manifest import read_report

MOST = 6
FOLDER = "images"


def saved_reports(manifest: Mapping[str, Any], folder: Path) -> dict[str, Mapping[str, Any]]:
    """The reports of a release's artifacts in a folder, by the artifact's name.

    Those of other bytes than the archives' count as none.
    """
    held = [archive["manifest"] for archive in manifest["archives"]]
    found = {own["artifact"]: read_report(folder / f"{own['artifact']}.json", own) for own in held}
    return {artifact: report for artifact, report in found.items() if report is not None}


def copy_samples(
    manifest: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    folder: Path,
    release: Path,
) -> list[Sample]:
    """The images of the archives' reports, one for each case, copied to `release/images`.

    What an earlier card had there and this one has not is removed.

    Args:
        manifest: the release's.
        reports: by artifact, as far as there are any.
        folder: of the reports, which holds the images that they name.
    """
    chosen: dict[str, Sample] = {}
    for archive in manifest["archives"]:
        own = archive["manifest"]
        for made in reports.get(own["artifact"], {}).get("generations") or []:
            if not made["images"].get("candidate"):
                continue
            name = Path(str(made["images"]["candidate"])).name
            source = folder / FOLDER / name
            if made["case"] in chosen or len(chosen) == MOST or not source.is_file():
                continue
            target = release / FOLDER / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            chosen[made["case"]] = Sample(f"{FOLDER}/{name}", own["artifact"], made)
    kept = {Path(sample.file).name for sample in chosen.values()}
    for path in (release / FOLDER).glob("*.png"):
        if path.name not in kept:
            path.unlink()
    return list(chosen.values())
