"""A repo on the Hub beside the files that it is to have, and the commit that brings them there.

Files go up one by one before the commit that names them, and the Hub keeps what it has received,
so an attempt that failed is repeated with the rest alone. Nothing of the repo is deleted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convert.errors import InputError, UserError
from convert.files.disk import digest_file
from convert.process.environment import is_of_certificates
from convert.source.hub import Repo, explain, quiet
from convert.source.select import File
from convert.units import size

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Unknown is what a file will be that is made when its turn comes, where the repo has one like it.
UploadChange = Literal["new", "changed", "unchanged", "unknown"]
AT_ONCE = 100  # files in one question to the Hub, which takes 256
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")  # in what hf_xet raises
SMALL = 10_000_000  # bytes; the Hub may want such files within the commit


@dataclass(frozen=True)
class Upload:
    """One file of the repo: a local file, a text made for the repo, or one that is made later.

    Attributes:
        path: in the repo.
        size: bytes; None where only making it tells. That of an archive to come is an estimate.
        sha256: where it is known.
        is_made: whether it is there to be sent, or the Hub has it.
        received: whether the Hub keeps it already, although no commit names it.
    """

    path: str
    size: int | None
    change: UploadChange
    file: Path | None = None
    content: bytes = b""
    sha256: str | None = None
    is_made: bool = True
    received: bool = False


@dataclass(frozen=True)
class Listing:
    """What a repo holds: its commit, None where there is no such repo yet, and its files."""

    commit: str | None
    files: Mapping[str, File]

    def beside(
        self,
        path: str,
        *,
        file: Path | None = None,
        content: bytes = b"",
        facts: Mapping[str, Any] | None = None,
    ) -> Upload:
        """A file that the repo is to have, with what becomes of the one that it has there.

        Args:
            file, content: where the file is on this disk, or else all of it.
            facts: its size and SHA-256, where they are known; of one that is neither, they are all.
        """
        digest = facts["sha256"] if facts else None
        count = facts["size"] if facts else file.stat().st_size if file else len(content)
        there = self.files.get(path)
        change: UploadChange = "new" if there is None else "changed"
        if there is not None and there.size == count and _same(there, digest, file, content):
            change = "unchanged"
        return Upload(path, count, change, file, content, digest)


def list_repo(repo: Repo) -> Listing:
    """What the repo holds now. Raises InputError where the Hub does not say."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with explained(repo):
        try:
            return Listing(*repo.listing())
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Listing(None, {})


@dataclass
class Sending:
    """A commit to a repo, or a pull request, in the making; use it within `explained`.

    Args:
        listing: what the repo held when this began; the commit is refused if it has changed since.
    """

    repo: Repo
    listing: Listing
    pull_request: bool = False
    _operations: list[Any] = field(default_factory=list)

    @cached_property
    def _api(self) -> HfApi:
        """The Hub, where the repo is there from now on."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.repo.endpoint)
        if self.listing.commit is None:
            api.create_repo(self.repo.name, exist_ok=True)
        return api

    def received(self, files: Sequence[Mapping[str, Any]]) -> set[str]:
        """The SHA-256 of the files among these that the Hub keeps, be they in a commit or not.

        Args:
            files: size and sha256 of each.
        """
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

        found: set[str] = set()
        if self.listing.commit is None:
            return found
        for start in range(0, len(files), AT_ONCE):
            wanted = [
                UploadInfo(size=f["size"], sample=b"", sha256=bytes.fromhex(f["sha256"]))
                for f in files[start : start + AT_ONCE]
            ]
            objects, *_ = post_lfs_batch_info(
                upload_infos=wanted,
                token=None,
                repo_type="model",
                repo_id=self.repo.name,
                revision=None if self.pull_request else "main",
                endpoint=self.repo.endpoint,
            )
            # What it wants sent, it says how to send.
            found |= {entry["oid"] for entry in objects if not entry.get("actions")}
        return found

    def send(self, upload: Upload) -> None:
        """Send a file that has changed; the Hub keeps it, whatever becomes of the rest.

        What it was read from may go afterwards.
        """
        from huggingface_hub import CommitOperationAdd

        if upload.change == "unchanged":
            return
        file = upload.file
        if file is not None and upload.size is not None and upload.size <= SMALL:
            upload = replace(upload, file=None, content=file.read_bytes())
        operation = CommitOperationAdd(
            path_in_repo=upload.path, path_or_fileobj=upload.file or upload.content
        )
        if upload.sha256 is not None:
            operation.upload_info.sha256 = bytes.fromhex(upload.sha256)  # not to be read for it
        self._api.preupload_lfs_files(self.repo.name, [operation], create_pr=self.pull_request)
        self._operations.append(operation)

    def name(self, upload: Upload) -> None:
        """Have the commit name a file that the Hub has received earlier."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.lfs import UploadInfo

        assert upload.sha256 is not None
        assert upload.size is not None
        operation = CommitOperationAdd(path_in_repo=upload.path, path_or_fileobj=b"")
        operation.upload_info = UploadInfo(
            size=upload.size, sample=b"", sha256=bytes.fromhex(upload.sha256)
        )
        # As `preupload_lfs_files` leaves one; there is no other way to tell huggingface_hub.
        operation._upload_mode, operation._is_uploaded = "lfs", True
        self._operations.append(operation)

    def commit(self, message: str) -> str | None:
        """Make the commit, or propose it; its URL, or None where nothing was sent."""
        if not self._operations:
            return None
        made = self._api.create_commit(
            self.repo.name,
            self._operations,
            commit_message=message,
            create_pr=self.pull_request,
            parent_commit=self.listing.commit,
        )
        return str(made.pr_url if self.pull_request else made.commit_url)


def message(uploads: Sequence[Upload]) -> str:
    """What a commit of these files is called."""
    changed = [u for u in uploads if u.change != "unchanged"]
    archives = sum(u.path.endswith(".zip") or ".zip." in u.path for u in changed)
    return f"Core ML models: {archives} archives, {size(sum(u.size or 0 for u in changed))}"


@contextmanager
def explained(repo: Repo) -> Iterator[None]:
    """Turn what huggingface_hub raises into what the user can do about it, and keep it quiet."""
    try:
        with quiet(), _without_bars():
            yield
    except Exception as error:
        raise _explained(error, repo) from None


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep huggingface_hub's own progress bars away, unless the user has asked it for them."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _same(there: File, digest: str | None, file: Path | None, content: bytes) -> bool:
    """Whether the Hub's file has this content, by the digest that it lists."""
    if there.sha256:
        if digest is None:
            digest = digest_file(file) if file else hashlib.sha256(content).hexdigest()
        return digest == there.sha256
    if file is not None:
        content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.etag


def _explained(error: Exception, repo: Repo) -> Exception:
    """What the user can do about it, in our own words: theirs may hold signed URLs."""
    from huggingface_hub import errors as hub

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps what a thread of an upload raises
    if isinstance(error, UserError):
        return error
    status = None
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
    elif of_xet := XET_STATUS.search(str(error)):
        status = int(of_xet[1])
    hints = {
        401: "`hf auth login` with a token that may write.",
        403: "Run it again, in case a link has expired; what has arrived is not sent again. "
        "Or the login may not write to this repo: `hf auth login` with one that may.",
        409: "The repo is changing right now: run it again.",
        412: "Somebody has changed the repo meanwhile: run it again.",
    }
    if status in hints:
        return InputError(f"the Hub refused with status {status}", where=repo, hint=hints[status])
    broke = InputError(
        "the Hub cannot be reached, or the connection broke",
        where=repo,
        hint="Run it again: what has arrived there is not sent again.",
    )
    if isinstance(error, OSError) and error.errno is None and not is_of_certificates(error):
        return broke  # as hf_xet says it
    found = explain(error, repo)
    if isinstance(found, InputError) and "cannot be reached" in found.problem:
        return broke
    return found
