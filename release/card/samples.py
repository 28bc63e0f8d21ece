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


def copy_samples(manifest: Mapping[str, Any], reports: Path, release: Path) -> list[Sample]:
    """The images of the archives' reports, one for each case, copied to `release/images`.

    What an earlier card had there and this one has not is removed. Reports of other bytes than the
    archives', or without images, count as none.

    Args:
        manifest: the release's.
        reports: the folder with `<artifact>.json` and the images that they name.
    """
    chosen: dict[str, Sample] = {}
    for archive in manifest["archives"]:
        own = archive["manifest"]
        for made in _generations(reports / f"{own['artifact']}.json", own["fingerprint"]):
            name = Path(str(made["images"]["candidate"])).name
            source = reports / FOLDER / name
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


def _generations(file: Path, fingerprint: str) -> list[dict[str, Any]]:
    report = read_report(file, {"fingerprint": fingerprint}) or {}
    return [g for g in report.get("generations") or [] if g["images"].get("candidate")]
