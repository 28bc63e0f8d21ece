"""A release folder → a repo on the Hugging Face Hub: only what changed, in one commit or pull
request.

    README.md  manifest.json  SHA256SUMS  LICENSE*  images/
    <variant>/<width>x<height>/<archive>.zip

Files go up one by one before the commit that names them, and the Hub keeps what it has received,
so an attempt that failed is repeated with the rest alone. Nothing of the repo is deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convert.errors import InputError, UserError
from convert.files.disk import digest_file
from convert.files.json_files import FileMissing, read_text
from convert.process.progress import Progress, Silent
from convert.source.hub import Repo, explain, quiet
from convert.source.select import File
from convert.units import size
from release.card.licenses import objection
from release.card.samples import FOLDER as IMAGES
from release.card.source_card import read_source_card
from release.pack.manifest import FILE, read_sums, sha256_sums
from release.pack.pack import SUMS, read_release

UploadChange = Literal["new", "changed", "unchanged"]


class LicenseForbids(UserError):
    """The model's licence does not let it be passed on, as far as is known (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Upload:
    """One file of the repo: a local file, or a text made for the repo."""

    path: str  # in the repo
    size: int
    change: UploadChange
    file: Path | None = None
    content: bytes = b""


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
        return sum(u.size for u in self.changes)


def plan_publication(release: Path, repo: str, *, endpoint: str | None = None) -> Publication:
    """Compare a release folder with a repo; sends nothing.

    Raises:
        InputError: no release folder, a file that is not as SHA256SUMS has it, no access.
    """
    local = _local_files(release)
    remote = Repo(repo, endpoint=endpoint)
    try:
        with quiet():
            commit, listing = _listing(remote)
    except Exception as error:
        raise _explained(error, remote) from None
    uploads = []
    for path, source in sorted(local.items()):
        content = source if isinstance(source, bytes) else b""
        file = source if isinstance(source, Path) else None
        count = len(content) if file is None else file.stat().st_size
        there = listing.get(path)
        change: UploadChange = "new" if there is None else "changed"
        if there is not None and there.size == count and _same(there, file, content):
            change = "unchanged"
        uploads.append(Upload(path, count, change, file, content))
    left = sorted(listing.keys() - local.keys() - {".gitattributes"})
    return Publication(repo, commit is None, commit, tuple(uploads), tuple(left))


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
    from huggingface_hub import CommitOperationAdd, HfApi

    if not allow_license:
        require_license(release)
    plan = plan_publication(release, repo, endpoint=endpoint)
    if not plan.changes:
        return plan
    progress = progress or Silent()
    api = HfApi(endpoint=endpoint)
    try:
        with quiet():
            if plan.creates_repo:
                api.create_repo(repo, exist_ok=True)
            operations = []
            with progress.stage(f"Publishing to {repo}", plan.bytes, "B") as advance:
                for upload in plan.changes:
                    operation = CommitOperationAdd(
                        path_in_repo=upload.path,
                        path_or_fileobj=upload.file or upload.content,
                    )
                    # Kept by the Hub from here on, whatever happens to the commit.
                    api.preupload_lfs_files(repo, [operation], create_pr=pull_request)
                    operations.append(operation)
                    advance(upload.size)
                made = api.create_commit(
                    repo,
                    operations,
                    commit_message=_message(plan),
                    create_pr=pull_request,
                    parent_commit=plan.commit,
                )
    except Exception as error:
        raise _explained(error, Repo(repo, endpoint=endpoint)) from None
    url = made.pr_url if pull_request else made.commit_url
    return Publication(repo, plan.creates_repo, plan.commit, plan.uploads, plan.left, str(url))


def require_license(release: Path) -> None:
    """Raise LicenseForbids unless the card names a licence that lets the model be passed on."""
    card = read_source_card(release / "README.md")
    if card is None:
        raise InputError("has no card", where=release, hint="`sdxl-coreml card` writes README.md.")
    found = objection(card.data.get("license"), card.data.get("license_name"))
    if found is not None:
        raise LicenseForbids(
            f"not published: {found.license} {found.reason}",
            where=release,
            hint="Name the licence in the recipe's [release]; if its owner has allowed you to "
            "publish it, give --allow-license.",
        )


def place(archive: Mapping[str, Any]) -> str:
    """The folder of an archive in the repo: `split-einsum/832x1216`."""
    own = archive["manifest"]
    return f"{own['attention'].replace('_', '-')}/{own['resolution']}"


def _local_files(release: Path) -> dict[str, Path | bytes]:
    """The repo's files by path in it; texts that name archives get the paths of the repo."""
    manifest = read_release(release)
    moved = {
        f["name"]: f"{place(archive)}/{f['name']}"
        for archive in manifest["archives"]
        for f in archive["files"]
    }
    try:
        sums = read_sums(release / SUMS)
        card = read_text(release / "README.md")
    except FileMissing as error:
        raise InputError(f"is not complete: {error.where} is missing", where=release) from None
    for archive in manifest["archives"]:
        for f in archive["files"]:
            _require_intact(release / f["name"], f, sums)
    for name, path in moved.items():
        card = card.replace(f"]({name})", f"]({path})")
    files: dict[str, Path | bytes] = {path: release / name for name, path in moved.items()}
    files["README.md"] = card.encode()
    files[FILE] = (release / FILE).read_bytes()
    files[SUMS] = sha256_sums({moved.get(n, n): digest for n, digest in sums.items()}).encode()
    for license in sorted(release.glob("LICENSE*")):
        files[license.name] = license.read_bytes()
    for image in sorted((release / IMAGES).glob("*.png")):
        files[f"{IMAGES}/{image.name}"] = image
    return files


def _require_intact(file: Path, facts: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    if not file.is_file() or file.stat().st_size != facts["size"]:
        problem = "is missing, or has another size than the manifest says"
    elif sums.get(file.name) != facts["sha256"] or digest_file(file) != facts["sha256"]:
        problem = "has another SHA-256 than the manifest and SHA256SUMS say"
    else:
        return
    raise InputError(problem, where=file, hint="Run `sdxl-coreml pack` again.")


def _listing(repo: Repo) -> tuple[str | None, dict[str, File]]:
    """The repo's commit and files; None and nothing where there is no such repo yet."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return repo.listing()
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None, {}


def _same(there: File, file: Path | None, content: bytes) -> bool:
    """Whether the Hub's file has this content, by the digest that it lists."""
    if file is not None:
        content = b"" if there.sha256 else file.read_bytes()
    if there.sha256:
        found = digest_file(file) if file else hashlib.sha256(content).hexdigest()
        return found == there.sha256
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.etag


def _message(plan: Publication) -> str:
    archives = sum(u.path.endswith(".zip") or ".zip." in u.path for u in plan.changes)
    return f"Core ML models: {archives} archives, {size(plan.bytes)}"


def _explained(error: Exception, repo: Repo) -> Exception:
    """What the user can do about it, in our own words: theirs may hold signed URLs."""
    from huggingface_hub import errors as hub

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps what a thread of an upload raises
    if isinstance(error, UserError):
        return error
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        hints = {
            401: "`hf auth login` with a token that may write.",
            403: "Run it again, in case a link has expired; what has arrived is not sent again. "
            "Or the login may not write to this repo: `hf auth login` with one that may.",
            409: "The repo is changing right now: run it again.",
            412: "Somebody has changed the repo meanwhile: run it again.",
        }
        if status in hints:
            return InputError(
                f"the Hub refused with status {status}", where=repo, hint=hints[status]
            )
    found = explain(error, repo)
    if isinstance(found, InputError) and "cannot be reached" in found.problem:
        return InputError(
            "the Hub cannot be reached, or the connection broke",
            where=repo,
            hint="Run it again: what has arrived there is not sent again.",
        )
    return found
