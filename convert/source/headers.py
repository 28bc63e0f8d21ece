"""The headers of a Hub repo or a URL: what a plan needs, some megabytes of a checkpoint of many GB.

Configs and tokenizers are fetched; of each weight file only the headers (`convert.source.holes`).
Such a checkpoint opens like any other, but its weights must not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from convert.errors import InputError
from convert.files.disk import link
from convert.process.progress import Progress
from convert.source.download import CheckpointSource, fetch, meant, selection, single
from convert.source.holes import write_headers
from convert.source.hub import Repo, explain, is_unreachable, quiet
from convert.source.parts import fetch_url_headers
from convert.source.select import SINGLE, File
from convert.source.snapshot import Snapshot
from convert.source.url import is_kept

Get = Callable[[CheckpointSource], Snapshot]  # a source, on this disk


@contextmanager
def looking(progress: Progress, *, token: str | None = None) -> Iterator[Get]:
    """Brings sources to this disk as far as opening them needs it; what is fetched goes again.

    An error about such a file, in the block, names the source instead.

    Args:
        progress: told where a server sends no parts of files, before all of one is fetched.
        token: for the server of a URL.
    """
    places: dict[Path, CheckpointSource] = {}
    with TemporaryDirectory(prefix="sdxl-coreml-") as root:

        def get(source: CheckpointSource) -> Snapshot:
            folder = Path(root, str(len(places)))
            places[folder] = source
            return _look(source, folder, progress, token)

        try:
            yield get
        except InputError as error:
            for folder, source in places.items():
                if error.where and Path(error.where).is_relative_to(folder):
                    inside = Path(error.where).relative_to(folder).as_posix()
                    place = source.location if source.url else f"{source.location}/{inside}"
                    raise InputError(error.problem, where=place, hint=error.hint) from None
            raise


def _look(
    source: CheckpointSource, folder: Path, progress: Progress, token: str | None
) -> Snapshot:
    if source.kind == "repo":
        return fetch_headers(source, folder)
    # A VAE is known by its digest.
    if source.url is None or source.take == "vae" or is_kept(source.url, source.sha256):
        return fetch(source, progress, token=token)
    found = fetch_url_headers(source.url, folder, token=token)
    if found is None:
        why = "its headers cannot be had without the rest, which is fetched"
        progress.done(f"{source.location}: {why}")
        return fetch(source, progress, token=token)
    return single(found, found.files[0].name)


def fetch_headers(
    source: CheckpointSource,
    folder: Path,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Snapshot:
    """Fetch configs, tokenizers and weight files' headers of a Hub repo into `folder`.

    A file that the Hub's cache holds is linked whole.

    Raises:
        InputError: as `convert.source.download.download`.
    """
    repo = Repo(source.location, source.revision, endpoint, cache_dir)
    with quiet():
        try:
            commit, listing = repo.listing()
            select = selection(source)
            names = select(list(listing), lambda name: repo.content(commit, listing[name]))
            files = tuple(listing[name] for name in names)
            for file in files:
                _fetch(repo, commit, file, folder)
        except InputError:
            raise
        except Exception as error:
            if is_unreachable(error):
                raise InputError(
                    "the Hub cannot be reached",
                    where=repo,
                    hint="Check the connection, or give what is on this disk in its place.",
                ) from None
            raise explain(error, repo) from None
    return meant(Snapshot(folder, repo.name, commit, files), source)


def _fetch(repo: Repo, commit: str, file: File, folder: Path) -> None:
    target = folder / file.name
    cached = repo.cached(commit, file)
    if cached is not None:
        link(cached, target)
    elif target.suffix.lower() not in SINGLE:
        _fetch_whole(repo, commit, file, folder)
    elif not write_headers(
        target, file.size, lambda start, count: repo.read(commit, file, count, start=start)
    ):
        if target.suffix != ".safetensors":
            raise InputError(
                f"{file.name} is a pickle of PyTorch before 1.6, whose list of tensors cannot be "
                "fetched without the rest",
                where=repo,
                hint=f"Download it first: sdxl-coreml download {repo.name} --out FOLDER",
            )
        _fetch_whole(repo, commit, file, folder)


def _fetch_whole(repo: Repo, commit: str, file: File, folder: Path) -> None:
    repo.fetch(commit, file, folder / file.name, folder / ".part" / file.etag, lambda done: None)
