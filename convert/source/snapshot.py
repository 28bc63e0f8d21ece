"""A checkpoint folder that we fill, and the record that says what it holds.

The record `.sdxl-coreml.json` is written last and removed first: no record, not done. Until then
a staging folder says whose files these are, so that a killed run can go on and an update can
remove what it replaces.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.appearing import appearing
from convert.files.disk import digest_file, link
from convert.files.documents import Document, LocalName, Size, checked
from convert.files.json_files import read_bytes, read_json
from convert.source.select import FOLDERS, File, Read

RECORD = ".sdxl-coreml.json"
STAGING = ".sdxl-coreml.incomplete"

BASE = "base/"  # what precedes the names of files that another checkpoint supplies
OTHER_VAE = "other-vae/"  # the same of a VAE that takes the place of the checkpoint's own

Select = Callable[[Sequence[str], Read], list[str]]


class Listed(Document):
    """A file that a record lists; size and SHA-256 where it was finished."""

    name: LocalName
    size: Size | None = None
    sha256: str | None = None


class Record(Document):
    """What a folder holds: the source, the revision that was asked for, and what that meant."""

    location: str
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    files: list[Listed]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint on this disk, or a file of weights that becomes part of one.

    Attributes:
        path: the folder, or the single file that is meant.
        repo, commit: None where nothing vouches for them.
        sha256: what the single file must have (hex), as its user says.
        ingredients: what else the checkpoint is made of, by the recipe's words for it: `base`,
            `loras[0]`.
    """

    path: Path
    repo: str | None
    commit: str | None
    files: tuple[File, ...]
    sha256: str | None = None
    ingredients: Mapping[str, Snapshot] = field(default_factory=dict)

    def require_digests(self, found: Mapping[Path, str | None]) -> None:
        """Raise InputError if a single file's SHA-256 (hex) is known and is not what it must be."""
        for snapshot in self._all():
            digest = found.get(snapshot.path)
            if None not in (snapshot.sha256, digest) and digest != snapshot.sha256:
                raise InputError(
                    f"the file's SHA-256 is {digest}, not {snapshot.sha256}",
                    where=snapshot.path,
                    hint="It is another file, or arrived damaged: compare with what its page says.",
                )

    @property
    def digests(self) -> dict[Path, str]:
        """SHA-256 (hex) of the files that somebody vouches for, ingredients' among them."""
        return {
            snapshot.folder / file.name: file.sha256
            for snapshot in self._all()
            for file in snapshot.files
            if file.sha256
        }

    @property
    def folder(self) -> Path:
        """Where the files' names start."""
        for file in self.files:
            depth = len(Path(file.name).parts)
            if self.path.parts[-depth:] == Path(file.name).parts:
                return self.path.parents[depth - 1]
        return self.path

    def _all(self) -> Iterator[Snapshot]:
        yield self
        for ingredient in self.ingredients.values():
            yield from ingredient._all()

    @property
    def name(self) -> str | None:
        """The repo's own name, without its owner's."""
        return self.repo.rpartition("/")[2] if self.repo else None


def copy(snapshot: Snapshot, out: Path, location: str, revision: str | None) -> Snapshot:
    """The same checkpoint in `out`, linked where it can be; `location` is its source's name."""
    claim(out, location)
    begin(out, location, snapshot.files)
    for file in snapshot.files:
        link((snapshot.path / file.name).resolve(), out / file.name)
    return finish(replace(snapshot, path=out), location, revision)


def claim(out: Path, location: str) -> None:
    """Raises InputError if `out` holds anything but an earlier download of `location`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("is a file, not a folder", where=out, hint="Give --out another name.")
    if all(path.name == STAGING for path in out.iterdir()):
        return
    record = read_record(out / STAGING / RECORD) or read_record(out / RECORD)
    if record is None or record.location != location:
        held = record.location if record else "files that no download of ours put there"
        raise InputError(
            f"holds {held}; left as it is",
            where=out,
            hint="Give --out an empty or new folder, or remove this one.",
        )


def begin(out: Path, location: str, files: Sequence[File]) -> Path:
    """Open the staging folder; from here until the end `out` has no record."""
    staging, names = out / STAGING, {f.name for f in files}
    for earlier in (out / RECORD, staging / RECORD):
        record = read_record(earlier)
        names |= {entry.name for entry in record.files} if record else set()
    staging.mkdir(parents=True, exist_ok=True)
    listed = [{"name": name} for name in sorted(names)]
    _write_json(staging / RECORD, {"schema": 1, "location": location, "files": listed})
    (out / RECORD).unlink(missing_ok=True)
    return staging


def finish(snapshot: Snapshot, location: str, revision: str | None) -> Snapshot:
    """Remove what an earlier commit left, write the record, close the staging folder."""
    out, names = snapshot.path, {f.name for f in snapshot.files}
    begun = read_record(out / STAGING / RECORD)
    for entry in begun.files if begun else ():
        stale = out / entry.name
        # A record may come from anywhere: nothing outside `out` is removed on its word.
        if entry.name not in names and stale.parent.resolve().is_relative_to(out.resolve()):
            stale.unlink(missing_ok=True)
    record = {
        "schema": 1,
        "location": location,
        "repo": snapshot.repo,
        "revision": revision,
        "commit": snapshot.commit,
        "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in snapshot.files],
    }
    _write_json(out / RECORD, record)
    shutil.rmtree(out / STAGING)
    return snapshot


def recorded(folder: Path) -> Snapshot | None:
    """What the folder's record says it is, if the files still have the sizes it lists."""
    record = read_record(folder / RECORD)
    if record is None:
        return None
    files = tuple(File(e.name, -1 if e.size is None else e.size, e.sha256) for e in record.files)
    try:
        sizes = [(folder / file.name).stat().st_size for file in files]
    except OSError:  # a file is gone
        return None
    whole = files and sizes == [file.size for file in files]
    return Snapshot(folder, record.repo, record.commit, files) if whole else None


def hashed(folder: Path, files: Sequence[File]) -> tuple[File, ...]:
    """The files with their SHA-256; the Hub gives it for those in LFS, the others are small."""
    return tuple(f if f.sha256 else replace(f, sha256=digest_file(folder / f.name)) for f in files)


def file_at(folder: Path, name: str) -> File:
    """A file as it lies; in the Hub's cache an LFS file's blob is called by its SHA-256."""
    blob = (folder / name).resolve().name
    known = re.fullmatch(r"[0-9a-f]{64}", blob)
    return File(name, (folder / name).stat().st_size, blob if known else None)


def file_names(folder: Path) -> list[str]:
    """The files of `folder` and of the folders in it, hidden ones left out, sorted.

    A link to a folder is that folder. A link that leads nowhere is listed like a file, so that
    it is missed by whoever needs it.
    """
    names = []
    for place in (folder, *(p for p in folder.iterdir() if p.is_dir())):
        paths = [p for p in place.iterdir() if p.is_file() or (p.is_symlink() and not p.exists())]
        names += [p.relative_to(folder).as_posix() for p in paths]
    return sorted(n for n in names if not n.startswith(".") and "/." not in n)


def select_local(folder: Path, select: Select) -> list[str]:
    """What `select` takes of the files in `folder`.

    Raises:
        InputError: as `select` does, or a link among the files that leads nowhere.
    """
    for place in (folder / name for name in FOLDERS):
        require_target(place)
        if place.is_symlink() and folder.resolve().is_relative_to(place.resolve()):
            raise _bad_link(place, "a folder that holds it")
    try:
        names = select(file_names(folder), lambda name: read_bytes(folder / name))
    except InputError as error:
        raise InputError(error.problem, where=folder, hint=error.hint) from None
    for name in names:
        require_target(folder / name)
    return names


def require_target(path: Path, hint: str | None = None) -> None:
    """Raise InputError if `path` is a link that leads nowhere."""
    if not path.is_symlink():
        return
    try:
        path.stat()
    except OSError as error:
        loops = error.errno == errno.ELOOP
        found = "itself" if loops else "nothing that is there"
        raise _bad_link(path, found, hint) from None


def _bad_link(path: Path, what: str, hint: str | None = None) -> InputError:
    return InputError(
        f"is a link to {path.readlink()}, {what}",
        where=path,
        hint=hint or "Link it to the folder or file that belongs there, or copy that.",
    )


def read_record(path: Path) -> Record | None:
    """A record of ours; None if it is not there or is damaged, and vouches for nothing."""
    try:
        return checked(Record, read_json(path), path)
    except InputError:
        return None


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with appearing(path) as new:
        new.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
