"""A release folder → a repo on the Hugging Face Hub: only what changed, in one commit or pull
request.

    README.md  manifest.json  SHA256SUMS  LICENSE*  images/
    <variant>/<width>x<height>/<archive>.zip"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.errors import InputError, UserError
from convert.files.disk import digest_file
from convert.files.json_files import FileMissing, read_text
from convert.process.progress import Progress, Silent
from convert.source.hub import Repo
from release.card.licenses import objection
from release.card.samples import FOLDER as IMAGES
from release.card.source_card import read_source_card
from release.pack.manifest import FILE, read_sums, sha256_sums
from release.pack.pack import SUMS, read_release
from release.publish.sending import Listing, Sending, Upload, explained, list_repo, message


class LicenseForbids(UserError):
    """The model's licence does not let it be passed on, as far as is known (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Publication:
    """What publishing would do, or has done."""

    repo: str
    creates_repo: bool
    commit: str | None  # that the repo is at now; None without a repo
    uploads: tuple[Upload, ...]
    left: tuple[str, ...]  # files of the repo that this release does not have
    url: str | None = None  # of the commit or pull request that was made

    @property
    def changes(self) -> tuple[Upload, ...]:
        """The files that are sent."""
        return tuple(u for u in self.uploads if u.change != "unchanged")

    @property
    def bytes(self) -> int:
        """What is sent at most; the Hub may have received some of it earlier."""
        return sum(u.size or 0 for u in self.changes if not u.received)


def plan_publication(release: Path, repo: str, *, endpoint: str | None = None) -> Publication:
    """Compare a release folder with a repo; sends nothing.

    Raises:
        InputError: no release folder, a file that is not as SHA256SUMS has it, no access.
    """
    local = _local_files(release)
    listing = list_repo(Repo(repo, endpoint=endpoint))
    return compare(repo, listing, local)


def compare(repo: str, listing: Listing, local: Mapping[str, Path | bytes]) -> Publication:
    """What publishing these files, by path in the repo, would do."""
    uploads = [
        listing.beside(path, file=source)
        if isinstance(source, Path)
        else listing.beside(path, content=source)
        for path, source in sorted(local.items())
    ]
    return publication(repo, listing, uploads)


def publication(repo: str, listing: Listing, uploads: Sequence[Upload]) -> Publication:
    """What becomes of a repo by these files."""
    left = sorted(listing.files.keys() - {u.path for u in uploads} - {".gitattributes"})
    return Publication(repo, listing.commit is None, listing.commit, tuple(uploads), tuple(left))


def publish(
    release: Path,
    repo: str,
    *,
    pull_request: bool = False,
    allow_license: bool = False,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Publication:
    """Bring a repo to the state of a release folder, with one commit or pull request.

    Args:
        pull_request: propose the commit instead of making it.
        allow_license: publish whatever the licence says; the user has a permission of their own.
        endpoint: the Hub; huggingface_hub's own if None.

    Raises:
        LicenseForbids: the card's licence does not allow it, or there is none.
        InputError: as `plan_publication`; the Hub refuses, or cannot be reached.
    """
    if not allow_license:
        require_license(release)
    place = Repo(repo, endpoint=endpoint)
    local = _local_files(release)
    listing = list_repo(place)
    plan = compare(repo, listing, local)
    if not plan.changes:
        return plan
    progress = progress or Silent()
    with explained(place):
        sending = Sending(place, listing, pull_request)
        with progress.stage(f"Publishing to {repo}", plan.bytes, "B") as advance:
            for upload in plan.changes:
                sending.send(upload)
                advance(upload.size or 0)
            return replace(plan, url=sending.commit(message(plan.uploads)))


def require_license(release: Path) -> None:
    """Raise LicenseForbids unless the card names a licence that lets the model be passed on."""
    card = read_source_card(release / "README.md")
    if card is None:
        raise InputError("has no card", where=release, hint="`sdxl-coreml card` writes README.md.")
    require_allowed(card.data, release)


def require_allowed(front: Mapping[str, Any], where: Path) -> None:
    """Raise LicenseForbids unless the front matter of a card names a licence that allows it."""
    found = objection(front.get("license"), front.get("license_name"))
    if found is not None:
        raise LicenseForbids(
            f"not published: {found.license} {found.reason}",
            where=where,
            hint="Name the licence in the recipe's [release]; if its owner has allowed you to "
            "publish it, give --allow-license.",
        )


def place(archive: Mapping[str, Any]) -> str:
    """The folder of an archive in the repo: `split-einsum/832x1216`."""
    own = archive["manifest"]
    return f"{own['attention'].replace('_', '-')}/{own['resolution']}"


def papers(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Path | bytes]:
    """What goes with a release's archives, by path in the repo; archives are named by theirs.

    Args:
        folder: where it lies.
        manifest: the release's.

    Raises:
        InputError: some of it is missing.
    """
    try:
        sums = read_sums(folder / SUMS)
        card = read_text(folder / "README.md")
    except FileMissing as error:
        raise InputError(f"is not complete: {error.where} is missing", where=folder) from None
    moved = {
        f["name"]: f"{place(archive)}/{f['name']}"
        for archive in manifest["archives"]
        for f in archive["files"]
    }
    for name, path in moved.items():
        card = card.replace(f"]({name})", f"]({path})")
    files: dict[str, Path | bytes] = {"README.md": card.encode()}
    files[FILE] = (folder / FILE).read_bytes()
    files[SUMS] = sha256_sums({moved.get(n, n): digest for n, digest in sums.items()}).encode()
    for license in sorted(folder.glob("LICENSE*")):
        files[license.name] = license.read_bytes()
    for image in sorted((folder / IMAGES).glob("*.png")):
        files[f"{IMAGES}/{image.name}"] = image
    return files


def _local_files(release: Path) -> dict[str, Path | bytes]:
    """The repo's files by path in it."""
    manifest = read_release(release)
    files = papers(release, manifest)
    sums = read_sums(release / SUMS)
    for archive in manifest["archives"]:
        for f in archive["files"]:
            _require_intact(release / f["name"], f, sums)
            files[f"{place(archive)}/{f['name']}"] = release / f["name"]
    return files


def _require_intact(file: Path, facts: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    if not file.is_file() or file.stat().st_size != facts["size"]:
        problem = "is missing, or has another size than the manifest says"
    elif sums.get(file.name) != facts["sha256"] or digest_file(file) != facts["sha256"]:
        problem = "has another SHA-256 than the manifest and SHA256SUMS say"
    else:
        return
    raise InputError(problem, where=file, hint="Run `sdxl-coreml pack` again.")
