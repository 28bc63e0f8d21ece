"""The headers of a Hub repo: what a plan needs, a few hundred kilobytes of a checkpoint of many GB.

Configs and tokenizers are fetched; of each weight file only the header, in front of a hole of the
file's true size. Such a folder opens like any checkpoint, but its weights must not be read.
"""

from __future__ import annotations

from pathlib import Path

from convert.errors import InputError
from convert.files.disk import link
from convert.source.download import CheckpointSource, meant, selection
from convert.source.hub import Repo, explain, is_unreachable, quiet
from convert.source.select import File
from convert.source.snapshot import Snapshot

FIRST = 1 << 20  # bytes asked for at once; the header of SDXL's UNet has a fifth of that


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
                    hint="Check the connection, or give --source a local checkpoint.",
                ) from None
            raise explain(error, repo) from None
    return meant(Snapshot(folder, repo.name, commit, files), source)


def _fetch(repo: Repo, commit: str, file: File, folder: Path) -> None:
    target = folder / file.name
    cached = repo.cached(commit, file)
    if cached is not None:
        link(cached, target)
    elif target.suffix == ".bin":
        raise InputError(
            f"{file.name} is a pickle, whose list of tensors cannot be fetched without the rest",
            where=repo,
            hint=f"Download the checkpoint first: sdxl-coreml download {repo.name} --out FOLDER",
        )
    elif target.suffix != ".safetensors":
        repo.fetch(commit, file, target, folder / ".part" / file.etag, lambda done: None)
    else:
        start = repo.read(commit, file, FIRST)
        length = 8 + int.from_bytes(start[:8], "little")
        if length > len(start):
            start = repo.read(commit, file, min(length, file.size))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.write(start[:length])
            stream.truncate(file.size)
