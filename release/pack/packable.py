"""An artifact that may be packed → its archive, in a workspace; its place is for others to say.

An archive is named by all that determines its bytes, so what is known of one that was made is true
of it for good.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from convert.errors import UserError
from convert.files.cache import Cache, key_of
from convert.files.disk import digest_file
from convert.process.code import code_digest
from convert.process.progress import Progress
from convert.recipe.recipe import parse_recipe
from convert.units import size
from release.pack.archive import split as split_archive
from release.pack.archive import write_archive
from release.pack.bundle import Digests, find_report, finished_manifest, is_current, make_bundle
from release.pack.manifest import SHARED, measured, release_manifest, verification


class NotVerified(UserError):
    """An artifact whose verification did not pass, or that has none (exit code 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Packable:
    """A finished artifact, its report, and how its archive is to be cut.

    Attributes:
        found: the report of this very artifact, of whatever version; None without one.
        split: the most bytes of one file; None for whole archives.
    """

    path: Path
    manifest: Mapping[str, Any]
    found: Mapping[str, Any] | None
    split: int | None = None

    @property
    def name(self) -> str:
        """The artifact's name."""
        return str(self.manifest["artifact"])

    @cached_property
    def report(self) -> Mapping[str, Any] | None:
        """The report, if it is by the checks and gates of this version."""
        return self.found if self.found is not None and is_current(self.found) else None

    @property
    def bytes(self) -> int:
        """About how large its archive is, and never much less: weights are stored as they are."""
        return sum(facts["size"] for facts in self.manifest["files"].values())

    @cached_property
    def fingerprint(self) -> str:
        """All that determines the archive's bytes."""
        told = verification(self.report) if self.report else None
        code = [code_digest("release"), zlib.ZLIB_RUNTIME_VERSION]
        return key_of([self.manifest["fingerprint"], told, self.split, code])

    def entry(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """What the release's manifest says of the archive that was made, today or earlier."""
        own = {**made["manifest"], **{key: self.manifest[key] for key in SHARED}}
        own["verification"] = self._told()
        return {**made, "fingerprint": self.fingerprint, "manifest": own}

    def _told(self) -> dict[str, Any] | None:
        """Outcome and figures of the verification, for the release's manifest and its card."""
        if self.report is None:
            return None
        figures = measured({"bits": self.manifest["bits"], **self.report})
        return {**verification(self.report), **figures}


def packables(artifacts: Sequence[Path], *, split: int | None = None) -> list[Packable]:
    """The artifacts in the order of their recipe, with their reports; nothing else is read.

    Reports are looked for in `reports/` beside each artifact, as `run` leaves them.

    Raises:
        InputError: no artifact, files of one are missing, or artifacts of several runs.
    """
    manifests = {path: finished_manifest(path) for path in artifacts}
    shared = release_manifest([{"manifest": m} for m in manifests.values()])  # or an error
    recipe = parse_recipe(shared["recipe"]["text"], where="the artifacts' recipe")
    order = {artifact.name: number for number, artifact in enumerate(recipe.artifacts())}
    found = [Packable(p, m, find_report(p, m), split) for p, m in manifests.items()]
    return sorted(found, key=lambda item: (order.get(item.name, len(order)), item.name))


def require_verified(items: Sequence[Packable], *, done: str, remedy: str) -> None:
    """Raise NotVerified unless all have passed.

    Args:
        done: what was to be done with them, as a past participle.
        remedy: what else may be done, as a sentence.
    """
    bad = []
    for item in items:
        if item.found is None:
            state = "was not verified"
        elif item.report is None:
            state = "was verified by another version's checks or gates"
        elif item.report["verdict"] != "pass":
            state = f"verdict: {item.report['verdict']}"
        else:
            continue
        bad.append(f"{item.name} ({state})")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NotVerified(
            f"not {done}, because verification did not pass: {', '.join(bad[:3])}{more}",
            hint="`sdxl-coreml run` verifies what it makes, and again where this version would do "
            f"it otherwise; {remedy}",
        )


def make_archive(
    item: Packable, digests: Digests, cache: Cache, progress: Progress
) -> tuple[dict[str, Any], list[Path]]:
    """The archive's entry in a release's manifest, and its files in the cache's workspace.

    Of the disk it takes as much as the archive; while that is cut, as much as a part more.

    Raises:
        InputError: a file of the artifact is not as its manifest has it.
        OSError: the disk is full, for example.
    """
    bundle = cache.new_folder()
    manifest = make_bundle(item.path, bundle, report=item.report, digests=digests)
    name = f"{manifest['artifact']}.zip"
    new = cache.new_folder() / name
    total = sum(f["size"] for f in manifest["files"].values())
    with progress.stage(f"Packing {name}", total, "B") as advance:
        write_archive(bundle, new, advance)
    shutil.rmtree(bundle)
    whole, count = digest_file(new), new.stat().st_size
    parts = split_archive(new, item.split) if item.split else [new]
    files = []
    for part in parts:
        digest = whole if part == new else digest_file(part)
        files.append({"name": part.name, "size": part.stat().st_size, "sha256": digest})
    progress.done(f"{name}: {size(count)}" + (f" in {len(parts)} parts" if len(parts) > 1 else ""))
    made = {"archive": name, "size": count, "sha256": whole, "files": files, "manifest": manifest}
    return item.entry(made), parts
