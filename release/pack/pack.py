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
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError, UserError
from convert.files.cache import Cache, key_of
from convert.files.disk import digest_file, disk_error
from convert.files.documents import checked
from convert.files.json_files import FileMissing
from convert.process.code import code_digest
from convert.process.progress import Progress, Silent
from convert.run import manifest as artifact_manifests
from convert.units import size
from release.pack.archive import split as split_archive
from release.pack.archive import write_archive
from release.pack.bundle import Digests, find_report, finished_manifest, is_current, make_bundle
from release.pack.documents import ReleaseManifest
from release.pack.manifest import (
    FILE,
    SHARED,
    measured,
    read_sums,
    release_manifest,
    sha256_sums,
    text,
    verification,
)
from release.pack.stale import FILE as STALE
from release.pack.stale import require_current

SUMS = "SHA256SUMS"
OURS = {SUMS, FILE, STALE, "README.md", "images", ".cache"}


class NotVerified(UserError):
    """An artifact whose verification did not pass, or that has none (exit code 1)."""

    exit_code = 1


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
    manifests, found = require_packable(artifacts, release, allow_unverified=allow_unverified)
    reports = {path: r if r is not None and is_current(r) else None for path, r in found.items()}
    earlier = _earlier(release)
    digests = Digests()
    fresh, archives = [], []
    try:
        release.mkdir(parents=True, exist_ok=True)
        with Cache(_cache_folder(release)) as cache:
            wanted = {p: _fingerprint(m, reports[p], split) for p, m in manifests.items()}
            kept = {p: _kept(release, earlier, key, cache) for p, key in wanted.items()}
            _require_room(release, [manifests[p] for p, entry in kept.items() if entry is None])
            for path, manifest in manifests.items():
                entry = kept[path]
                if entry is None:
                    entry = _archive(path, release, reports[path], split, digests, cache, progress)
                    entry["fingerprint"] = wanted[path]
                    fresh.append(manifest["artifact"])
                else:
                    entry["manifest"] |= {key: manifest[key] for key in SHARED}
                entry["manifest"]["verification"] = _found(reports[path], manifest)
                archives.append(entry)
                # Written after each archive, so that a run that is killed goes on from here.
                _record(release, archives, earlier, cache)
            for name in {f["name"] for a in earlier for f in a["files"]} - _names(archives):
                (release / name).unlink(missing_ok=True)
            manifest = _record(release, archives, [], cache)
            (release / STALE).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, release) from None
    told = {manifests[path]["artifact"]: report for path, report in found.items() if report}
    return Packed(release, manifest, tuple(fresh), told)


def require_packable(
    artifacts: Sequence[Path], release: Path, *, allow_unverified: bool = False
) -> tuple[dict[Path, dict[str, Any]], dict[Path, dict[str, Any] | None]]:
    """The manifests and reports of artifacts that `pack` would pack; nothing else is read.

    Raises:
        NotVerified, InputError: as `pack` does.
    """
    manifests = {path: finished_manifest(path) for path in artifacts}
    release_manifest([{"manifest": m} for m in manifests.values()])  # of one run, or an error
    reports = {path: find_report(path, manifest) for path, manifest in manifests.items()}
    if not allow_unverified:
        _require_verified(manifests, reports)
    _require_ours(release, manifests)
    return manifests, reports


def read_release(folder: Path) -> dict[str, Any]:
    """The manifest of a release folder.

    Raises:
        InputError: it is none.
        Stale: a later run into the same folder did not pass.
    """
    manifest = _recorded(folder)
    require_current(folder)
    return manifest


def _recorded(folder: Path) -> dict[str, Any]:
    """The manifest as it lies there, whatever has come after it."""
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


def _archive(
    path: Path,
    release: Path,
    report: Mapping[str, Any] | None,
    split: int | None,
    digests: Digests,
    cache: Cache,
    progress: Progress,
) -> dict[str, Any]:
    """Write the archive of one artifact; returns its entry in the manifest."""
    bundle = cache.new_folder()
    manifest = make_bundle(path, bundle, report=report, digests=digests)
    name = f"{manifest['artifact']}.zip"
    new = cache.new_folder() / name
    total = sum(f["size"] for f in manifest["files"].values())
    with progress.stage(f"Packing {name}", total, "B") as advance:
        write_archive(bundle, new, advance)
    whole, count = digest_file(new), new.stat().st_size
    parts = split_archive(new, split) if split else [new]
    files = []
    for part in parts:
        digest = whole if part == new else digest_file(part)
        files.append({"name": part.name, "size": part.stat().st_size, "sha256": digest})
        cache.replace(part, release / part.name)
        cache.remember(release / part.name, digest)
    shutil.rmtree(bundle)
    progress.done(f"{name}: {size(count)}" + (f" in {len(parts)} parts" if len(parts) > 1 else ""))
    return {"archive": name, "size": count, "sha256": whole, "files": files, "manifest": manifest}


def _found(report: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Outcome and figures of a verification, for the release's manifest and its card."""
    if report is None:
        return None
    return {**verification(report), **measured({"bits": manifest["bits"], **report})}


def _record(
    release: Path,
    archives: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
    cache: Cache,
) -> dict[str, Any]:
    """Write manifest.json and SHA256SUMS for what is there, archives still to come included."""
    names = {a["archive"] for a in archives}
    known = [*archives, *(a for a in earlier if a["archive"] not in names)]
    cache.write_text(release / FILE, text(release_manifest(archives, known)))
    sums = {f["name"]: f["sha256"] for a in known for f in a["files"]}
    cache.write_text(release / SUMS, sha256_sums(sums))
    return release_manifest(archives)


def _names(archives: Sequence[Mapping[str, Any]]) -> set[str]:
    return {f["name"] for a in archives for f in a["files"]}


def _earlier(release: Path) -> list[dict[str, Any]]:
    """The archives that an earlier run has recorded."""
    try:
        return list(_recorded(release)["archives"])
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


def _fingerprint(
    manifest: Mapping[str, Any], report: Mapping[str, Any] | None, split: int | None
) -> str:
    """All that determines an archive's bytes."""
    found = verification(report) if report else None
    code = [code_digest("release"), zlib.ZLIB_RUNTIME_VERSION]
    return key_of([manifest["fingerprint"], found, split, code])


def _require_verified(
    manifests: Mapping[Path, Mapping[str, Any]], reports: Mapping[Path, Mapping[str, Any] | None]
) -> None:
    bad = []
    for path, manifest in manifests.items():
        report = reports[path]
        if report is None:
            state = "was not verified"
        elif not is_current(report):
            state = "was verified by another version's checks or gates"
        elif report["verdict"] != "pass":
            state = f"verdict: {report['verdict']}"
        else:
            continue
        bad.append(f"{manifest['artifact']} ({state})")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NotVerified(
            f"not packed, because verification did not pass: {', '.join(bad[:3])}{more}",
            hint="`sdxl-coreml run` verifies what it makes, and again where this version would do "
            "it otherwise; --allow-unverified packs it anyway, and the card will say so.",
        )


def _require_ours(release: Path, manifests: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise InputError if the release folder holds what no `pack` has put there."""
    if release.exists() and not release.is_dir():
        raise InputError("is a file; a folder is expected", where=release)
    try:
        listed = set(read_sums(release / SUMS))
    except InputError:
        listed = set()
    ours = OURS | listed | {f"{m['artifact']}.zip" for m in manifests.values()}
    for entry in sorted(release.iterdir()) if release.exists() else []:
        archive = re.sub(r"\.\d{3}$", "", entry.name)  # a run that was killed left parts unlisted
        if not {entry.name, archive} & ours and not entry.name.startswith(("LICENSE", ".README.")):
            raise InputError(
                f"holds `{entry.name}`, which no `pack` has made; nothing was written",
                where=release,
                hint="Give --out a new or empty folder.",
            )


def _require_room(release: Path, missing: Sequence[Mapping[str, Any]]) -> None:
    """Archives are copies: raise InputError if they do not fit on the disk."""
    needed = sum(f["size"] for m in missing for f in m["files"].values())
    free = shutil.disk_usage(release).free
    if needed > free:
        raise InputError(
            f"no space: {size(needed)} to write, {size(free)} free",
            where=release,
            hint="Archives are copies, unlike artifacts. Free some space, `pack` on another disk "
            "with --out, or fewer artifacts; `run --no-release` makes none.",
        )


def _cache_folder(release: Path) -> Path:
    """The run's cache where the release lies in its output folder, else one of its own."""
    beside = release.resolve().parent / ".cache"
    return beside if beside.is_dir() else release / ".cache"
