"""A run's folder → a repo on the Hub, without room for its archives: each is made when its turn
comes, sent and dropped.

The repo holds afterwards, to the byte, what `pack` and `publish` of the release would have put
there. What an archive came to is kept in the folder's cache, so that one that is up is never made
again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convert.errors import InputError
from convert.files.cache import Cache
from convert.files.disk import disk_error
from convert.process.progress import Progress, Silent
from convert.recipe.recipe import Recipe, parse_recipe
from convert.source.hub import Repo
from convert.units import size
from release.build import add_card, find_artifacts, of_last_run, passing
from release.card.licenses import license_front
from release.card.samples import copy_samples
from release.card.source_card import SourceCard
from release.pack.bundle import Digests
from release.pack.manifest import FILE, release_manifest
from release.pack.pack import SUMS, release_texts
from release.pack.packable import Packable, make_archive, packables, require_verified
from release.pack.room import NoRoom, free_at
from release.publish.publish import Publication, papers, place, publication, require_allowed
from release.publish.sending import Listing, Sending, Upload, explained, list_repo, message

KIND = "archives"  # of the entries that say what an archive came to
BESIDE = ("README.md", FILE, SUMS)


@dataclass(frozen=True)
class RunFolder:
    """What is to be published of a run's folder.

    Attributes:
        folder: that the artifacts lie in, with their reports and the cache.
        items: the artifacts, in their recipe's order.
        left: the names of those that are not published.
        source: the source model's card.
        licenses: the source's licence texts.
    """

    folder: Path
    items: Sequence[Packable]
    left: Sequence[str] = ()
    source: SourceCard | None = None
    licenses: Sequence[Path] = ()

    @property
    def recipe(self) -> Recipe:
        """That the artifacts were made by."""
        return parse_recipe(self.items[0].manifest["recipe"]["text"], where="recipe")


def read_run(folder: Path, *, split: int | None = None, only_passing: bool = False) -> RunFolder:
    """What there is to publish in a run's folder: the artifacts of its last recipe.

    Args:
        folder: what `run` left, or one artifact in it.
        split: the most bytes of one file; larger archives come in parts.
        only_passing: leave out what did not pass its verification.

    Raises:
        NotVerified: an artifact did not pass this version's verification; or none did.
        InputError: no artifact, files of one are missing, or artifacts of several runs.
    """
    try:
        found = find_artifacts(folder)
    except InputError as error:
        raise InputError(
            f"is no release folder, and {error.problem}",
            where=folder,
            hint="Give what `run` has left, or a release that `pack` has made of it.",
        ) from None
    chosen = of_last_run(found)
    if only_passing:
        chosen = passing(chosen)
    items = packables(chosen, split=split)
    require_verified(items, done="published", remedy="--passing leaves out what did not pass.")
    left = [path.name for path in found if path not in chosen]
    return RunFolder(found[0].resolve().parent, items, left)


def plan_run(run: RunFolder, repo: str, *, endpoint: str | None = None) -> Publication:
    """What publishing a run's folder would do; makes and sends nothing.

    What an archive will be that was never made is not known: its size is an estimate.

    Raises:
        InputError: no access to the repo.
    """
    listing = list_repo(Repo(repo, endpoint=endpoint))
    cache = Cache(run.folder / ".cache")
    entries, uploads = [], []
    for item in run.items:
        made = cache.known(KIND, item.fingerprint)
        if made is None:
            uploads.append(_to_come(item, listing))
        else:
            entries.append(item.entry(made))
            uploads += _files(entries[-1], listing)
    beside = _beside if len(entries) == len(run.items) else _beside_to_come
    with TemporaryDirectory() as folder:
        uploads += beside(run, entries, listing, Path(folder))
    return _publication(repo, listing, uploads)


def publish_run(
    run: RunFolder,
    repo: str,
    *,
    pull_request: bool = False,
    allow_license: bool = False,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Publication:
    """Bring a repo to the state of a run's folder, with one commit or pull request.

    Of the disk it needs as much as the largest archive that is not up, and a little. What is
    there as a release's archive is not looked at.

    Args:
        pull_request, allow_license, endpoint: as `release.publish.publish.publish` takes them.

    Raises:
        LicenseForbids: the licence does not allow it, or there is none.
        NoRoom: not even one archive fits on the disk.
        InputError: an artifact is damaged; the disk is full; the Hub refuses, or cannot be reached.
    """
    if not allow_license:
        require_license(run)
    progress = progress or Silent()
    where = Repo(repo, endpoint=endpoint)
    listing = list_repo(where)
    with explained(where), Cache(run.folder / ".cache") as cache:
        known = [cache.known(KIND, item.fingerprint) for item in run.items]
        sending = Sending(where, listing, pull_request)
        going = _Going(run, sending, cache, progress)
        entries = going.archives(known)
        with _on_disk(run.folder):
            beside = _beside(run, entries, listing, cache.new_folder())
        for upload in beside:
            going.send(upload)
        found = _publication(repo, listing, going.uploads)
        return replace(found, url=sending.commit(message(found.uploads)))


def require_license(run: RunFolder) -> None:
    """Raise LicenseForbids unless the release's licence lets the model be passed on."""
    require_allowed(license_front(run.recipe, run.source), run.folder)


class _Going:
    """A publication under way: archives come into being one at a time."""

    def __init__(self, run: RunFolder, sending: Sending, cache: Cache, progress: Progress) -> None:
        self.uploads: list[Upload] = []
        self._run, self._sending, self._cache, self._progress = run, sending, cache, progress
        self._digests = Digests()

    def archives(self, known: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
        """Bring every archive to the Hub; returns their entries in the release's manifest.

        Args:
            known: what each came to when it was made; None where it never was.

        Raises:
            NoRoom: there is none to make one.
        """
        before = [self._of(i, m) if m else [] for i, m in zip(self._run.items, known, strict=True)]
        absent = [u for uploads in before for u in uploads if u.change != "unchanged"]
        kept = self._sending.received([{"size": u.size, "sha256": u.sha256} for u in absent])
        up = [
            bool(uploads) and all(u.change == "unchanged" or u.sha256 in kept for u in uploads)
            for uploads in before
        ]
        _require_room(self._run, [i for i, u in zip(self._run.items, up, strict=True) if not u])
        entries = []
        for item, made, uploads, is_up in zip(self._run.items, known, before, up, strict=True):
            if made and is_up:
                for upload in uploads:
                    self._name(upload)
                entries.append(item.entry(made))
            else:
                entries.append(self._made(item))
        return entries

    def send(self, upload: Upload) -> None:
        """Send a file, unless the repo has it."""
        self.uploads.append(replace(upload, file=None, content=b""))
        count = upload.size if upload.change != "unchanged" else 0
        with self._progress.stage(f"Sending {upload.path}", count, "B") as advance:
            self._sending.send(upload)
            advance(count or 0)

    def _of(self, item: Packable, made: Mapping[str, Any]) -> list[Upload]:
        return _files(item.entry(made), self._sending.listing)

    def _name(self, upload: Upload) -> None:
        if upload.change != "unchanged":
            upload = replace(upload, received=True)
            self._sending.name(upload)
        self.uploads.append(upload)

    def _made(self, item: Packable) -> dict[str, Any]:
        """Make an archive, send it, drop it; returns its entry in the release's manifest."""
        with _on_disk(self._run.folder):
            entry, parts = make_archive(item, self._digests, self._cache, self._progress)
            # Before it is sent: if that ends halfway, it is known whether the Hub has it.
            self._cache.entry(KIND, item.fingerprint, lambda folder: entry)
        for upload, part in zip(_files(entry, self._sending.listing), parts, strict=True):
            self.send(replace(upload, file=part))
            part.unlink()
        return entry


def _files(entry: Mapping[str, Any], listing: Listing) -> list[Upload]:
    """The files of an archive that is known, beside what the repo has."""
    folder = place(entry)
    return [listing.beside(f"{folder}/{f['name']}", facts=f) for f in entry["files"]]


def _to_come(item: Packable, listing: Listing) -> Upload:
    """An archive that was never made, as far as can be told."""
    name = f"{place({'manifest': item.manifest})}/{item.name}.zip"
    parts = "" if item.split is None or item.bytes <= item.split else ".*"
    there = any(path == name or path.startswith(f"{name}.") for path in listing.files)
    return Upload(name + parts, item.bytes, "unknown" if there else "new", is_made=False)


def _beside(
    run: RunFolder, entries: Sequence[Mapping[str, Any]], listing: Listing, folder: Path
) -> list[Upload]:
    """What goes with the archives, written into an empty folder: checksums, manifest, card, …"""
    manifest = release_manifest(entries)
    for name, content in release_texts(entries).items():
        (folder / name).write_text(content, "utf-8")
    told = {item.name: item.found for item in run.items if item.found}
    reports = run.folder / "reports"
    add_card(folder, manifest, told, reports, source=run.source, licenses=run.licenses)
    return [
        listing.beside(path, content=of if isinstance(of, bytes) else of.read_bytes())
        for path, of in papers(folder, manifest).items()
    ]


def _beside_to_come(
    run: RunFolder, entries: Sequence[Mapping[str, Any]], listing: Listing, folder: Path
) -> list[Upload]:
    """The same as far as it can be told before all archives are known."""
    manifest = {"archives": [{"manifest": item.manifest} for item in run.items]}
    told = {item.name: item.found for item in run.items if item.found}
    samples = copy_samples(manifest, told, run.folder / "reports", folder)
    files = {sample.file: folder / sample.file for sample in samples}
    files |= {license.name: license for license in run.licenses}
    return [
        *(listing.beside(path, content=file.read_bytes()) for path, file in files.items()),
        *(
            Upload(name, None, "unknown" if name in listing.files else "new", is_made=False)
            for name in BESIDE
        ),
    ]


def _publication(repo: str, listing: Listing, uploads: Sequence[Upload]) -> Publication:
    found = publication(repo, listing, sorted(uploads, key=lambda upload: upload.path))
    to_come = tuple(u.path.removesuffix(".*") for u in uploads if not u.is_made)
    return replace(found, left=tuple(p for p in found.left if not p.startswith(to_come)))


def _require_room(run: RunFolder, missing: Sequence[Packable]) -> None:
    """Raise NoRoom if the largest archive that has to be made does not fit on the disk."""
    needed = max((item.bytes + min(item.bytes, item.split or 0) for item in missing), default=0)
    free = free_at(run.folder)
    if needed > free:
        raise NoRoom(
            f"no space: {size(needed)} for one archive at a time, {size(free)} free",
            where=run.folder,
            hint=f"Free {size(needed - free)}.",
        )


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into what the user can do about them."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, folder) from None
