"""What is wrong with a bundle, an archive or a release, for whom, and what to do about it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.disk import digest_file
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import FileMissing
from convert.run.manifest import read_artifact
from release.lint import apps
from release.lint.app_view import AppView
from release.lint.bundle_checks import layout, models, provenance, tokenizer
from release.lint.checkpoint_checks import expectations
from release.lint.rules import Finding, Severity
from release.lint.tree import FolderTree, Tree, ZipTree
from release.pack.archive import Joined
from release.pack.manifest import FILE, read_sums
from release.pack.stale import FILE as STALE


@dataclass(frozen=True)
class Lint:
    """What was found of one bundle, or of a release's own files."""

    name: str
    findings: tuple[Finding, ...]
    views: tuple[AppView, ...] = ()

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(f.severity == "error" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Name, findings, and each app: whether it lists and runs the bundle, and as what."""
        return {
            "name": self.name,
            "findings": [f.to_json() for f in self.findings],
            "apps": [
                {
                    "app": r.app,
                    "works": r.works,
                    "listed": r.listed,
                    "attention": r.attention,
                    "sdxl": r.is_sdxl,
                    "size": r.size,
                    "image_to_image": r.image_to_image,
                }
                for r in self.views
            ],
        }


def lint_bundle(tree: Tree, *, digests: bool = True) -> Lint:
    """Everything about one bundle.

    Args:
        digests: also read every file and compare with its manifest; else sizes only.
    """
    views = apps.read_all(tree)
    found = [*layout(tree), *models(tree), *provenance(tree, digests), *tokenizer(tree)]
    found += expectations(tree)
    found += _as_apps_see_it(views)
    return Lint(tree.name, tuple(_once(found)), tuple(views))


def lint_archive(path: Path, *, digests: bool = True, parts: Sequence[Path] = ()) -> Lint:
    """A ZIP archive: its layout, and the bundle in it; nothing is unpacked.

    Args:
        parts: of the archive, where it lies in parts; `path` is then its name only.

    Raises:
        InputError: not a ZIP file.
    """
    try:
        for file in parts or (path,):
            refuse_pointer(file)
        whole: Any = io.BufferedReader(Joined(parts)) if parts else path
        archive = zipfile.ZipFile(whole)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"is no ZIP archive: {error}", where=path) from None
    with archive:
        names = [info.filename for info in archive.infolist()]
        tops = sorted({name.split("/")[0] for name in names if not name.startswith("__MACOSX/")})
        base, found = path.name.removesuffix(".zip"), []
        if tops != [base] or any("/" not in name for name in names):
            inside = ", ".join(tops[:4]) or "nothing"
            found.append(
                Finding(
                    "error", "archive-folder", path.name,
                    f"its top level is {inside}, not the one folder {base}",
                    f"the app unpacks it and looks for {base}: the model is not found",
                    (apps.DIFFUSERS,),
                )
            )  # fmt: skip
        prefix = f"{tops[0]}/" if len(tops) == 1 and all("/" in name for name in names) else ""
        inner = lint_bundle(ZipTree(archive, prefix), digests=digests)
    return Lint(path.name, (*found, *inner.findings), inner.views)


def lint_release(folder: Path, *, digests: bool = True) -> list[Lint]:
    """A release folder: SHA256SUMS, manifest, card, and every archive. Raises InputError."""
    found: list[Finding] = []
    try:
        sums = read_sums(folder / "SHA256SUMS")
    except FileMissing:
        raise InputError("holds no SHA256SUMS", where=folder) from None
    for name, expected in sums.items():
        if not (folder / name).is_file():
            problem = "is listed in SHA256SUMS and is not there"
        elif digests and digest_file(folder / name) != expected:
            problem = "has another SHA-256 than SHA256SUMS says"
        else:
            continue
        found.append(Finding("error", "digest", name, problem, "downloads cannot be trusted"))
    for name in (FILE, "README.md"):
        if not (folder / name).is_file():
            effect = "nobody can tell what this is and where it comes from"
            found.append(Finding("error", "release-file", name, "is missing", effect))
    if (folder / STALE).is_file():
        problem = "says that a later run did not pass"
        effect = "these are not the archives that were verified last"
        found.append(Finding("error", "stale", STALE, problem, effect))
    lints = [Lint(folder.name, tuple(found))]
    # SHA256SUMS has vouched for every byte of an archive, so its members need not be hashed again.
    there = [n for n in sums if (folder / n).is_file()]
    lints += [lint_archive(folder / n, digests=False) for n in there if n.endswith(".zip")]
    for name in sorted({n.rpartition(".")[0] for n in there if re.search(r"\.zip\.\d{3}$", n)}):
        parts = [folder / n for n in sorted(there) if n.startswith(f"{name}.")]
        lints.append(lint_archive(folder / name, digests=False, parts=parts))
    return lints


def lint(path: Path, *, digests: bool = True) -> list[Lint]:
    """Whatever `path` is: bundle, archive, artifact folder or release folder. Raises InputError."""
    if not path.exists():
        raise InputError("no such file or folder", where=path)
    if path.is_file():
        return [lint_archive(path, digests=digests)]
    if (path / "SHA256SUMS").is_file():
        return lint_release(path, digests=digests)
    if read_artifact(path):
        return [_lint_artifact(path)]
    return [lint_bundle(FolderTree(path), digests=digests)]


def _lint_artifact(path: Path) -> Lint:
    """The bundle that `pack` would make of an artifact: apps read nothing else."""
    from tempfile import TemporaryDirectory

    from release.pack.bundle import find_report, finished_manifest, make_bundle

    with TemporaryDirectory(prefix=".lint-", dir=path.parent) as temporary:
        folder = Path(temporary) / path.resolve().name
        folder.mkdir()
        make_bundle(path, folder, report=find_report(path, finished_manifest(path)))
        result = lint_bundle(FolderTree(folder), digests=False)
    note = Finding(
        "note", "artifact", path.name, "holds packages, which no app loads",
        "what is judged is the bundle that `pack` makes of it",
    )  # fmt: skip
    return Lint(result.name, (*result.findings, note), result.views)


def _as_apps_see_it(views: Iterable[AppView]) -> Iterator[Finding]:
    """The apps' messages, one finding for those that several share."""
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for view in views:
        for m in view.messages:
            merged.setdefault((m.rule, m.file, m.problem, m.effect), []).append(view.app)
    for (rule, file, problem, effect), names in merged.items():
        severity: Severity = "warning" if names == [apps.GUERNIKA] else "error"
        yield Finding(severity, rule, file, problem, effect, tuple(names))


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Errors first, and none twice."""
    order = {"error": 0, "warning": 1, "note": 2}
    unique = dict.fromkeys(findings)
    yield from sorted(unique, key=lambda f: order[f.severity])
