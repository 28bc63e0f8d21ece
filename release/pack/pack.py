"""Artifacts → release folder: archives, SHA256SUMS, manifest.json; finished archives are kept.

    <release>/
        <artifact>.zip      or its parts <artifact>.zip.001, … that `cat` joins
        SHA256SUMS          of everything beside it that was downloaded
        manifest.json       provenance, once for the release (release.manifest)
        README.md, images/  the card (release.card)
    LICENSE*            the source's licence texts

An archive is named by all that determines its bytes; while that stays the same, it is not written
again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.cache import Cache
from convert.files.disk import disk_error
from convert.files.documents import checked
from convert.files.json_files import FileMissing
from convert.process.progress import Progress, Silent
from convert.run import manifest as artifact_manifests
from release.pack.bundle import Digests
from release.pack.documents import ReleaseManifest
from release.pack.manifest import FILE, read_sums, release_manifest, sha256_sums, text
from release.pack.packable import Packable, make_archive, packables, require_verified
from release.pack.room import require_room
from release.pack.stale import FILE as STALE
from release.pack.stale import require_current

SUMS = "SHA256SUMS"
OURS = {SUMS, FILE, STALE, "README.md", "images", ".cache"}


@dataclass(frozen=True)
class Packed:
    """A release folder as `pack` has left it."""

    path: Path
    manifest: Mapping[str, Any]
    fresh: tuple[str, ...]  # the archives written in this run
    reports: Mapping[str, Mapping[str, Any]]  # of its artifacts, by name, where there are any


def find_artifacts(folder: Path) -> list[Path]:
    """The artifact folders of a run's output folder, or the one that `folder` is.

    Raises:
        InputError: there are none.
    """
    if (folder / FILE).is_file():
        return [folder]
    places = sorted(file.parent for file in folder.glob(f"*/{FILE}"))
    found = [place for place in places if artifact_manifests.read_artifact(place)]
    if not found:
        raise InputError(
            "holds no artifact",
            where=folder,
            hint="Give the folder that `run` or `convert` left, or one artifact in it.",
        )
    return found


def pack(
    artifacts: Sequence[Path],
    release: Path,
    *,
    split: int | None = None,
    allow_unverified: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Make `release` hold an archive of each artifact, and nothing else of ours.

    Reports are looked for in `reports/` beside each artifact, as `run` leaves them.

    Args:
        split: the most bytes of one file; larger archives come in parts.
        allow_unverified: take artifacts without a passed verification, too; the card says so.

    Raises:
        NotVerified: an artifact did not pass, and `allow_unverified` is False.
        InputError: `release` holds something else, artifacts of several runs, no room on the
            disk, a damaged artifact.
    """
    progress = progress or Silent()
    items = require_packable(artifacts, release, split=split, allow_unverified=allow_unverified)
    earlier = _earlier(release)
    digests = Digests()
    fresh, archives = [], []
    try:
        release.mkdir(parents=True, exist_ok=True)
        with Cache(_cache_folder(release)) as cache:
            kept = [_kept(release, earlier, item.fingerprint, cache) for item in items]
            missing = [item for item, made in zip(items, kept, strict=True) if made is None]
            require_room(release, sum(item.bytes for item in missing))
            for item, made in zip(items, kept, strict=True):
                if made is None:
                    made = _placed(item, release, digests, cache, progress)
                    fresh.append(item.name)
                archives.append(item.entry(made))
                # Written after each archive, so that a run that is killed goes on from here.
                _record(release, archives, earlier, cache)
            for name in {f["name"] for a in earlier for f in a["files"]} - _names(archives):
                (release / name).unlink(missing_ok=True)
            manifest = _record(release, archives, [], cache)
            (release / STALE).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, release) from None
    told = {item.name: item.found for item in items if item.found}
    return Packed(release, manifest, tuple(fresh), told)


def require_packable(
    artifacts: Sequence[Path],
    release: Path,
    *,
    split: int | None = None,
    allow_unverified: bool = False,
) -> list[Packable]:
    """The artifacts that `pack` would pack, in its order; nothing but manifests is read.

    Raises:
        NotVerified, InputError: as `pack` does.
    """
    items = packables(artifacts, split=split)
    if not allow_unverified:
        remedy = "--allow-unverified packs it anyway, and the card will say so."
        require_verified(items, done="packed", remedy=remedy)
    _require_ours(release, items)
    return items


def release_texts(archives: Sequence[Mapping[str, Any]], listed: Any = None) -> dict[str, str]:
    """manifest.json and SHA256SUMS of a release of these archives.

    Args:
        listed: the archives to list, which may be more while a release is being made.
    """
    listed = archives if listed is None else listed
    sums = {f["name"]: f["sha256"] for a in listed for f in a["files"]}
    return {FILE: text(release_manifest(archives, listed)), SUMS: sha256_sums(sums)}


def read_release(folder: Path) -> dict[str, Any]:
    """The manifest of a release folder.

    Raises:
        InputError: it is none.
        Stale: a later run into the same folder did not pass.
    """
    manifest = recorded(folder)
    require_current(folder)
    return manifest


def is_release(folder: Path) -> bool:
    """Whether a folder is a release's, whatever state it is in."""
    try:
        return artifact_manifests.read_values(folder).get("kind") == "release"
    except InputError:
        return False


def recorded(folder: Path) -> dict[str, Any]:
    """The manifest of a release folder, stale or not. Raises InputError if it is none."""
    hint = "`sdxl-coreml pack` makes one."
    try:
        manifest = artifact_manifests.read_values(folder)
    except FileMissing:
        manifest = {}
    if manifest.get("kind") != "release":
        raise InputError(
            "is no release folder: there is no manifest.json of a release", where=folder, hint=hint
        )
    checked(ReleaseManifest, manifest, folder / FILE, hint="Run `sdxl-coreml pack` again.")
    return manifest


def _placed(
    item: Packable, release: Path, digests: Digests, cache: Cache, progress: Progress
) -> dict[str, Any]:
    """Make an archive and give it its place; returns its entry in the manifest."""
    entry, parts = make_archive(item, digests, cache, progress)
    for part, facts in zip(parts, entry["files"], strict=True):
        cache.replace(part, release / part.name)
        cache.remember(release / part.name, facts["sha256"])
    return entry


def _record(
    release: Path,
    archives: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
    cache: Cache,
) -> dict[str, Any]:
    """Write manifest.json and SHA256SUMS for what is there, archives still to come included."""
    names = {a["archive"] for a in archives}
    known = [*archives, *(a for a in earlier if a["archive"] not in names)]
    for name, content in release_texts(archives, known).items():
        cache.write_text(release / name, content)
    return release_manifest(archives)


def _names(archives: Sequence[Mapping[str, Any]]) -> set[str]:
    return {f["name"] for a in archives for f in a["files"]}


def _earlier(release: Path) -> list[dict[str, Any]]:
    """The archives that an earlier run has recorded."""
    try:
        return list(recorded(release)["archives"])
    except InputError:
        return []


def _kept(
    release: Path, earlier: Sequence[dict[str, Any]], fingerprint: str, cache: Cache
) -> dict[str, Any] | None:
    """The entry of an archive that is finished and whole, or None."""
    for entry in earlier:
        if entry["fingerprint"] != fingerprint:
            continue
        files = {release / f["name"]: f for f in entry["files"]}
        try:
            if any(path.stat().st_size != f["size"] for path, f in files.items()):
                return None
            found = cache.digests(files)
        except OSError:
            return None
        return entry if all(found[p] == f["sha256"] for p, f in files.items()) else None
    return None


def _require_ours(release: Path, items: Sequence[Packable]) -> None:
    """Raise InputError if the release folder holds what no `pack` has put there."""
    if release.exists() and not release.is_dir():
        raise InputError("is a file; a folder is expected", where=release)
    try:
        listed = set(read_sums(release / SUMS))
    except InputError:
        listed = set()
    ours = OURS | listed | {f"{item.name}.zip" for item in items}
    for entry in sorted(release.iterdir()) if release.exists() else []:
        archive = re.sub(r"\.\d{3}$", "", entry.name)  # a run that was killed left parts unlisted
        if not {entry.name, archive} & ours and not entry.name.startswith(("LICENSE", ".README.")):
            raise InputError(
                f"holds `{entry.name}`, which no `pack` has made; nothing was written",
                where=release,
                hint="Give --out a new or empty folder.",
            )


def _cache_folder(release: Path) -> Path:
    """The run's cache where the release lies in its output folder, else one of its own."""
    beside = release.resolve().parent / ".cache"
    return beside if beside.is_dir() else release / ".cache"
