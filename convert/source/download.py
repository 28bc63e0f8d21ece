"""Hub repo, URL or local path -> pinned local checkpoint: a folder, or a single file.

A revision is resolved to a commit once, and every file is fetched at that commit. A folder we
write holds a record of what it is, written last: no record, not done.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from convert.errors import InputError
from convert.files.disk import disk_error, link
from convert.files.json_files import read_bytes, read_object, reason, shown
from convert.process.progress import Progress
from convert.source.hub import (
    FileProgress,
    Repo,
    counted,
    explain,
    holds,
    is_unreachable,
    quiet,
    require_space,
)
from convert.source.select import File, is_single, select_files, select_one, select_vae
from convert.source.snapshot import (
    RECORD,
    Select,
    Snapshot,
    begin,
    claim,
    copy,
    file_at,
    file_names,
    finish,
    hashed,
    read_record,
    recorded,
    require_target,
    select_local,
)
from convert.source.url import Url, fetch_url

__all__ = ["CheckpointSource", "File", "Snapshot", "download", "parse_source", "select_files"]

_REPO = re.compile(r"\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)


Taken = Literal["checkpoint", "checkpoint without vae", "vae"]


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint, or another file of weights, comes from.

    Attributes:
        kind: a local path, a Hub repo at a revision, or a URL.
        location: which one; without what a URL holds of secrets.
        file: the one of a repo that is meant; None for all that a checkpoint is.
        sha256: that the single file must have, in hex.
        url: the address, where it is one.
        take: what of a folder or repo is meant.
    """

    kind: Literal["path", "repo", "url"]
    location: str
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    url: Url | None = None
    take: Taken = "checkpoint"


def parse_source(text: str, revision: str | None = None) -> CheckpointSource:
    """What SOURCE means: an existing path wins, then `owner/name`, then a URL.

    Raises InputError if it is none of them, or a revision is given where none can be.
    """
    if (found := local_source(text)) is not None:
        if revision is not None:
            raise InputError(
                f"--revision {revision} given for a local path",
                where=text,
                hint="A revision belongs to a Hub repo. Leave it away, or give owner/name.",
            )
        return found
    if _REPO.fullmatch(text) and "--" not in text and ".." not in text:
        return CheckpointSource("repo", text, revision)
    if re.match("https?://", text):
        return _of_url(Url(text), revision)
    raise InputError(
        f"no such folder or file, and not a Hub repo id: {text!r}",
        hint="Give an existing path, or owner/name as on huggingface.co.",
    )


def local_source(text: str) -> CheckpointSource | None:
    """The existing path that `text` is, if it is one; raises InputError if it cannot be any."""
    try:
        path = Path(text).expanduser()
        require_target(path)
        is_there = bool(text) and path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; ~ of nobody
        raise InputError(f"cannot be a path: {reason(error)}", where=shown(text)) from None
    return CheckpointSource("path", str(path)) if is_there else None


_PAGES = {"tree": 2, "blob": 3, "resolve": 3}  # the Hub's; a file's has its path behind


def _of_url(url: Url, revision: str | None) -> CheckpointSource:
    """What a URL means: a page of the Hub is its repo, at its revision; all others are files."""
    address = urlsplit(url.address)
    parts = [unquote(part) for part in address.path.split("/") if part]
    repo, page = "/".join(parts[:2]), parts[2:]
    on_hub = address.hostname in ("huggingface.co", "www.huggingface.co", "hf.co")
    is_page = not page or (page[0] in _PAGES and len(page) >= _PAGES[page[0]])
    if not on_hub or not _REPO.fullmatch(repo) or not is_page or (page[2:] and page[0] == "tree"):
        if revision is not None:
            raise InputError(
                f"--revision {revision} given for a URL",
                where=url,
                hint="A revision belongs to a Hub repo. Leave it away, or give owner/name.",
            )
        return CheckpointSource("url", str(url), url=url)
    if page and revision not in (None, page[1]):
        raise InputError(
            f"the URL names revision {page[1]}, --revision {revision}",
            where=url,
            hint="Give one of the two.",
        )
    return CheckpointSource(
        "repo", repo, page[1] if page else revision, file="/".join(page[2:]) or None
    )


def download(
    source: CheckpointSource,
    out: Path | None = None,
    *,
    progress: FileProgress | None = None,
    select: Select = select_files,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
) -> Snapshot:
    """Make `source` a checkpoint on this disk: in `out`, or else in the Hub's cache or in place.

    `progress(file, done, total)` counts the bytes of the whole download. A run that was killed
    goes on where it stopped; without a connection, what `out` or the cache holds complete is used.
    The path of a snapshot is a folder's, or that of the single file that was meant.

    Args:
        token: for the server of a URL; the Hub has its own login.

    Raises:
        InputError: also if `out` holds anything but an earlier download of this source.
    """
    if source.url is not None:
        found = fetch_url(
            source.url,
            out,
            sha256=source.sha256,
            token=token,
            progress=progress or (lambda *_: None),
        )
        return single(found, found.files[0].name)
    if select is select_files:
        select = selection(source)
    if source.kind == "path":
        try:
            return _expected(_local(source, out, select), source)
        except OSError as error:
            raise disk_error(error, out or source.location) from None
    if out is not None:
        claim(out, source.location)
        done = recorded(out)
        if done is not None and done.commit == source.revision and _is_all(done, select):
            return _expected(meant(done, source), source)  # a commit never changes: no need to ask
    repo = Repo(source.location, source.revision, endpoint, cache_dir)
    with quiet():
        try:
            found = _from_hub(repo, out, select, progress or (lambda *_: None))
            return _expected(meant(found, source), source)
        except InputError:
            raise
        except Exception as error:
            raise explain(error, repo) from None


def fetch(
    source: CheckpointSource,
    progress: Progress,
    out: Path | None = None,
    *,
    token: str | None = None,
) -> Snapshot:
    """The same, as a stage of work that is shown where something is downloaded."""
    with ExitStack() as stack:
        advance, seen = None, 0

        def report(file: str, done: int, total: int) -> None:
            nonlocal advance, seen
            if advance is None:
                stage = progress.stage(f"Downloading {source.location}", total, "B")
                advance = stack.enter_context(stage)
            advance(done - seen)
            seen = done

        return download(source, out, progress=report, token=token)


def _from_hub(repo: Repo, out: Path | None, select: Select, progress: FileProgress) -> Snapshot:
    try:
        commit, listing = repo.listing()
    except Exception as error:
        kept = _offline(repo, out, select) if is_unreachable(error) else None
        if kept is None:
            raise
        return kept
    try:
        names = select(list(listing), lambda name: repo.content(commit, listing[name]))
        files = [listing[name] for name in names]
    except InputError as error:
        raise InputError(error.problem, where=repo, hint=error.hint) from None
    if out is None:
        path = repo.fetch_into_cache(commit, files, progress)
        return Snapshot(path, repo.name, commit, hashed(path, files))
    done = recorded(out)
    if (
        done is not None
        and done.commit == commit
        and {f.name for f in files} == {f.name for f in done.files}
    ):
        return done
    staging = begin(out, repo.name, files)
    missing = [f for f in files if not holds(out / f.name, f)]
    absent = [f for f in missing if repo.cached(commit, f) is None]
    require_space(out, absent, [staging / f.etag for f in absent])
    for file, report in counted(files, progress):
        cached = repo.cached(commit, file)
        if file in missing and cached is not None:
            link(cached, out / file.name)
        elif file in missing:
            repo.fetch(commit, file, out / file.name, staging / file.etag, report)
    snapshot = Snapshot(out, repo.name, commit, hashed(out, files))
    return finish(snapshot, repo.name, repo.revision)


def _offline(repo: Repo, out: Path | None, select: Select) -> Snapshot | None:
    """What an earlier run left complete: in `out` for the same revision, else in the cache."""
    if out is not None and (done := recorded(out)) is not None and _is_all(done, select):
        record = read_record(out / RECORD)
        if repo.revision == done.commit or (record and repo.revision == record.revision):
            return done
    commit = repo.cached_commit()
    path = repo.storage() / "snapshots" / str(commit)
    if commit is None or not path.is_dir():
        return None
    try:
        names = select_local(path, select)
    except InputError:
        return None
    # The listing of a cache that was never filled looks like that of a repo with fewer parts.
    whole = "model_index.json" in names and any(n.startswith("unet/") for n in names)
    parts = read_object(path / "model_index.json") if whole else {}
    for part in ("text_encoder", "tokenizer"):
        wanted, is_there = parts.get(part), any(n.startswith(f"{part}/") for n in names)
        if isinstance(wanted, list) and any(wanted) and not is_there:
            return None
    snapshot = Snapshot(path, repo.name, commit, hashed(path, [file_at(path, n) for n in names]))
    return snapshot if out is None else copy(snapshot, out, repo.name, repo.revision)


def _is_all(snapshot: Snapshot, select: Select) -> bool:
    """Whether the snapshot is what `select` would take, rather than another part of the repo."""
    names = [file.name for file in snapshot.files]
    try:
        return sorted(select(names, lambda n: read_bytes(snapshot.path / n))) == sorted(names)
    except InputError:
        return False


def _local(source: CheckpointSource, out: Path | None, select: Select) -> Snapshot:
    """A folder or a single file as it lies, or linked into `out`."""
    path = Path(source.location)
    if not path.exists():
        raise InputError("no such folder or file", where=path)
    if path.is_file():
        snapshot = Snapshot(path.parent, None, None, (file_at(path.parent, path.name),))
        if out is not None:
            snapshot = copy(snapshot, out, str(path.resolve()), None)
        return replace(snapshot, path=snapshot.path / path.name)
    here = recorded(path)
    if out is None or out.resolve() == path.resolve():
        names = [name for name in file_names(path) if (path / name).exists()]
        files = tuple(file_at(path, name) for name in names)
        return meant(here or Snapshot(path, None, None, files), source)
    if here is None:
        names = select_local(path, select)
        here = Snapshot(path, None, None, tuple(file_at(path, n) for n in names))
    return meant(copy(here, out, str(path.resolve()), None), source)


def _expected(snapshot: Snapshot, source: CheckpointSource) -> Snapshot:
    """The snapshot, which knows the digest that its file must have; InputError for another's."""
    snapshot = replace(snapshot, sha256=source.sha256)
    if source.sha256 is not None and not snapshot.path.is_file():
        raise InputError(
            "is a folder; a SHA-256 is of a single file",
            where=source.location,
            hint="Leave it away.",
        )
    snapshot.require_digests(snapshot.digests)
    return snapshot


def selection(source: CheckpointSource) -> Select:
    """What is taken of a repo: the file that is meant, or else all that a checkpoint is."""
    if source.file is not None:
        return partial(select_one, source.file)
    if source.take == "vae":
        return select_vae
    return select_files if source.take == "checkpoint" else partial(select_files, without=("vae",))


def meant(snapshot: Snapshot, source: CheckpointSource) -> Snapshot:
    """The snapshot as its source means it; a VAE's folder is looked through when it is opened."""
    if source.take == "vae" and source.file is None:
        return snapshot
    return single(snapshot, source.file)


def single(snapshot: Snapshot, file: str | None = None) -> Snapshot:
    """The snapshot, whose path is that of the file that is meant, or of the only one of weights."""
    names = [entry.name for entry in snapshot.files]
    if file is None:
        weights = [name for name in names if is_single(name)]
        if "model_index.json" in names or len(weights) != 1:
            return snapshot
        file = weights[0]
    return replace(snapshot, path=snapshot.path / file)
