"""One model repo on the Hugging Face Hub: its listing, its files, its place in the Hub's cache.

Bytes go to a partial file that the next run continues, are checked against the Hub's digest, and
only then get their name. huggingface_hub 2 throws a partial file away when it is killed, at 5 GB
for a UNet; so requests, login and the cache's layout are its work, the partial files are ours.
Cache layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from convert.errors import InputError
from convert.files.disk import disk_error
from convert.files.json_files import LARGEST
from convert.process.environment import is_of_certificates
from convert.source.select import File

COMMIT = re.compile(r"[0-9a-f]{40}")
FileProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Repo:
    """A model repo at a revision; `endpoint` and `cache_dir` default to huggingface_hub's own."""

    name: str
    revision: str | None = None
    endpoint: str | None = None
    cache_dir: Path | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def listing(self) -> tuple[str, dict[str, File]]:
        """The commit that the revision means now, and its files by name."""
        from huggingface_hub import HfApi

        info = HfApi(endpoint=self.endpoint).model_info(
            self.name, revision=self.revision, files_metadata=True, timeout=30
        )
        files = {}
        for entry in info.siblings or []:
            size, sha256 = entry.size or 0, None
            if entry.lfs is not None:
                size, sha256 = entry.lfs.size, entry.lfs.sha256
            etag = sha256 or entry.blob_id or ""
            files[entry.rfilename] = File(entry.rfilename, size, sha256, etag)
        return str(info.sha), files

    def storage(self) -> Path:
        """The repo's folder in the Hub's cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = self.cache_dir or Path(constants.HF_HUB_CACHE)
        return cache / repo_folder_name(repo_id=self.name, repo_type="model")

    def cached(self, commit: str, file: File) -> Path | None:
        """The file in the Hub's cache, links resolved; None if it is not there whole."""
        path = self.storage() / "snapshots" / commit / file.name
        return path.resolve() if path.is_file() and path.stat().st_size == file.size else None

    def cached_commit(self) -> str | None:
        """The commit that the revision meant when the cache last saw it."""
        revision = self.revision or "main"
        ref = self.storage() / "refs" / revision
        if COMMIT.fullmatch(revision):
            return revision
        return ref.read_text("utf-8").strip() if ref.is_file() else None

    def fetch(
        self, commit: str, file: File, target: Path, part: Path, report: Callable[[int], None]
    ) -> None:
        """Make `target` the file's content, continuing `part`; `report` gets the bytes there are.

        Raises InputError if what arrived is not what the Hub lists.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, HTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        if part.stat().st_size > file.size:
            os.truncate(part, 0)
        url = hf_hub_url(self.name, file.name, revision=commit, endpoint=self.endpoint)
        # A compressed body cannot be continued.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        while (done := part.stat().st_size) < file.size:
            report(done)
            try:
                with part.open("ab") as stream:
                    http_get(
                        url,
                        stream,
                        resume_size=done,
                        headers=headers,
                        expected_size=file.size,
                        tqdm_class=cast(Any, _bar(done, report)),
                    )
            except HTTPError as error:
                # A connection that drops is asked for the rest as long as bytes arrive.
                if isinstance(error, HfHubHTTPError) or part.stat().st_size <= done:
                    raise
        if not holds(part, file):
            part.unlink()
            raise InputError(
                f"{file.name} arrived damaged: its digest is not {file.etag}, which the Hub lists",
                where=self,
                hint="Run it again; if it stays so, a proxy in between changes files.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def read(self, commit: str, file: File, count: int, *, start: int = 0) -> bytes:
        """`count` bytes of the file from `start` on, or all that there are of them."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.name, file.name, revision=commit, endpoint=self.endpoint)
        headers = {
            **build_hf_headers(),
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{min(start + count, file.size) - 1}",
        }
        response = get_session().get(url, headers=headers, follow_redirects=True, timeout=30)
        hf_raise_for_status(response)
        return bytes(response.content[:count])

    def content(self, commit: str, file: File) -> bytes:
        """All of a small file, from the Hub's cache or from the Hub; InputError if it is large."""
        if file.size > LARGEST:
            raise InputError(f"{file.name} has {file.size} bytes; at most {LARGEST} are read")
        cached = self.cached(commit, file)
        return self.read(commit, file, file.size) if cached is None else cached.read_bytes()

    def fetch_into_cache(self, commit: str, files: Sequence[File], progress: FileProgress) -> Path:
        """The snapshot folder in the Hub's cache, with `files` in it."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import WeakFileLock

        storage = self.storage()
        blobs, locks = storage / "blobs", storage.parent / ".locks" / storage.name
        missing = [f for f in files if self.cached(commit, f) is None]
        require_space(storage, missing, [blobs / f"{f.etag}.incomplete" for f in missing])
        locks.mkdir(parents=True, exist_ok=True)
        for file, report in counted(files, progress):
            if file not in missing:
                continue
            blob = blobs / file.etag
            with WeakFileLock(locks / f"{file.etag}.lock"):
                if not holds(blob, file):
                    self.fetch(commit, file, blob, blobs / f"{file.etag}.incomplete", report)
            # The blob is there, so this only adds the snapshot's link to it.
            hf_hub_download(
                self.name,
                file.name,
                revision=commit,
                endpoint=self.endpoint,
                cache_dir=self.cache_dir,
                tqdm_class=cast(Any, _bar(0, report)),
            )
        if self.revision != commit:
            ref = storage / "refs" / (self.revision or "main")
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, "utf-8")
        return storage / "snapshots" / commit


def counted(
    files: Sequence[File], progress: FileProgress
) -> Iterator[tuple[File, Callable[[int], None]]]:
    """Each file with a function that takes its bytes so far and reports those of all files."""
    total, before = sum(file.size for file in files), 0
    for file in files:

        def report(done: int, name: str = file.name, before: int = before) -> None:
            progress(name, before + done, total)

        yield file, report
        before += file.size
        progress(file.name, before, total)


def holds(path: Path, file: File) -> bool:
    """Whether `path` has the content the Hub lists, by size and digest (read in chunks)."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    blob = f"blob {file.size}\0".encode()  # what git puts in front before it hashes
    with path.open("rb") as stream:
        kind = hashlib.sha256 if file.sha256 else lambda: hashlib.sha1(blob)
        return hashlib.file_digest(stream, kind).hexdigest() == file.etag


def require_space(folder: Path, files: Sequence[File], parts: Sequence[Path]) -> None:
    """Raises InputError if the disk of `folder` has no room for `files` less what `parts` hold."""
    needed = sum(file.size for file in files) - sum(p.stat().st_size for p in parts if p.is_file())
    existing = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"no space: {needed / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free",
            where=folder,
            hint="Free some space, or choose another folder.",
        )


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub could not be asked at all, so that older answers may serve."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.HfHubHTTPError):
        return error.response.status_code >= 500
    if type(error).__name__ == "UnsupportedProtocol":
        return False  # in HF_ENDPOINT: nothing was asked
    return isinstance(error, hub.HTTPError | hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError)


def explain(error: Exception, repo: Repo) -> Exception:
    """What the user can do about an error of huggingface_hub or of the disk; else `error` itself.

    The text is ours throughout: theirs holds URLs, which may carry signatures.
    """
    from huggingface_hub import errors as hub

    def say(problem: str, hint: str) -> InputError:
        return InputError(problem, where=repo, hint=hint)

    if isinstance(error, hub.OfflineModeIsEnabled):
        return say(
            "not complete on this disk, and HF_HUB_OFFLINE is set", "Unset it and try again."
        )
    if is_unreachable(error):
        return say(
            "the Hub cannot be reached, and the checkpoint is not complete on this disk",
            "Check the connection and run it again: it goes on where it stopped.",
        )
    if isinstance(error, hub.GatedRepoError):
        return say(
            "the repo is gated",
            f"Accept its terms at https://huggingface.co/{repo.name}, then `hf auth login`.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return say(f"no such revision: {repo.revision}", "Give a branch, a tag or a commit of it.")
    if isinstance(error, hub.RepositoryNotFoundError):
        return say(
            "no such repo on the Hub, or a private one, and no such local folder",
            "Check the spelling; if it is private, `hf auth login` with an account that sees it.",
        )
    if isinstance(error, hub.EntryNotFoundError):
        return say("a file that the Hub lists is not there", "Run it again, or give a commit.")
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        hints = {
            401: "The login is not valid: `hf auth login` again.",
            403: "The login may not read this repo: `hf auth login` with one that may.",
            429: "Too many requests: wait some minutes, and `hf auth login` for a higher limit.",
        }
        return say(f"the Hub refused with status {status}", hints.get(status, "Try again later."))
    if is_of_certificates(error):
        return error  # the variable that names them is told of by whoever reads the environment
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error, repo)
    if isinstance(error, OSError):  # http_get's size check, which comes without an errno
        return say("a file arrived with the wrong size", "Run it again: it goes on.")
    return error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep huggingface_hub's own warnings (each retry, with its URL) off the terminal."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _bar(done: int, report: Callable[[int], None]) -> type:
    """A stand-in for tqdm that draws nothing and passes the bytes on."""

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            self.done = done

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            self.done += int(count or 0)
            report(self.done)

    return Bar
