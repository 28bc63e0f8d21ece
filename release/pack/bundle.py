"""Artifact folder → bundle: the flat folder that apps load.

    <artifact>/
        TextEncoder.mlmodelc  TextEncoder2.mlmodelc  Unet.mlmodelc
        VAEDecoder.mlmodelc  VAEEncoder.mlmodelc
        vocab.json  merges.txt   the checkpoint's own tokenizer; merges.txt ends in a newline
        manifest.json            where it came from, what verification found (release.manifest)

A text encoder has `added_vocab.json` inside where the checkpoint has trained tokens: for Guernika.
Weights are hard links to the artifact's; nothing of it is changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.disk import digest_file
from convert.files.git_lfs import refuse_pointer
from convert.files.json_files import decode, read_bytes
from convert.run import manifest as artifact_manifests
from convert.tokenizer.app import ADDED_VOCAB, added_vocab
from release.pack.aliases import aliased
from release.pack.manifest import FILE, bundle_manifest, file_facts, read_report, text
from verify.judge.policy import load_policy

TOKENIZER = ("vocab.json", "merges.txt")


class Digests:
    """SHA-256 of files; one that many artifacts share by hard link is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, path: Path) -> str:
        """The digest of a file, read only where none of its links has been."""
        stat = path.stat()
        # The time tells a file from a later one that was given the same inode.
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if identity not in self._known:
            self._known[identity] = digest_file(path)
        return self._known[identity]


def finished_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact folder of packages, which are all there.

    Raises:
        InputError: not an artifact of ours, or files of it are missing.
    """
    manifest = artifact_manifests.read_artifact(path)
    if manifest is None:
        raise InputError(
            "is no artifact folder: there is no manifest.json of ours with packages",
            where=path,
            hint="`sdxl-coreml convert` or `run` make artifacts.",
        )
    for name, facts in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != facts["size"]:
            if found is not None:
                refuse_pointer(file)
            raise InputError(
                "is missing" if found is None else f"has {found} bytes, not {facts['size']}",
                where=file,
                hint=f"{path.name} is not complete. Run the command that made it again.",
            )
    return manifest


def find_report(artifact: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The artifact's verification in `reports/` beside it, as `run` leaves it, or None.

    A report of other bytes than the artifact's counts as none; whether this version would say the
    same is for `is_current` to tell.

    Args:
        manifest: the artifact's.
    """
    file = artifact.resolve().parent / "reports" / f"{manifest['artifact']}.json"
    return read_report(file, manifest)


def is_current(report: Mapping[str, Any]) -> bool:
    """Whether a report is by the checks and gates of this version, and not of another."""
    return report.get("code") == load_policy().made_by


def has_passed(artifact: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a finished artifact of that manifest passed its verification by this version."""
    report = find_report(artifact, manifest)
    return report is not None and report["verdict"] == "pass" and is_current(report)


def make_bundle(
    artifact: Path,
    folder: Path,
    *,
    report: Mapping[str, Any] | None = None,
    digests: Digests | None = None,
) -> dict[str, Any]:
    """Fill an empty folder with the bundle of an artifact; returns its manifest.

    Args:
        report: the artifact's verification, as `verify.reports.report.to_json` has it.
        digests: those known already; they grow.

    Raises:
        InputError: no artifact, or a file that is not as its manifest has it.
    """
    from release.compile.mlmodelc import compile_package

    manifest = finished_manifest(artifact)
    digests = Digests() if digests is None else digests
    _require_unchanged(artifact, manifest, digests)
    components = {}
    work = folder / ".packages"
    for component, name in manifest["components"].items():
        package = aliased(artifact / name, component, work / component)
        compiled = compile_package(package, folder)
        components[component] = compiled.name
        assert compiled.name == f"{COMPONENTS[component].file}.mlmodelc"
        if added := _added_tokens(manifest, component):
            (compiled / ADDED_VOCAB).write_text(added_vocab(added), "utf-8")
    shutil.rmtree(work, ignore_errors=True)
    for name in TOKENIZER:
        content = decode(read_bytes(artifact / name), artifact / name)
        if name == "merges.txt" and not content.endswith("\n"):
            content += "\n"  # Apple's tokenizer drops a last line that does not end
        (folder / name).write_text(content, "utf-8")
    bundle = bundle_manifest(manifest, components, file_facts(folder, digests.of), report)
    (folder / FILE).write_text(text(bundle), "utf-8")
    return bundle


def _added_tokens(manifest: Mapping[str, Any], component: str) -> list[Mapping[str, Any]]:
    """The tokens beside the vocabulary of a text encoder, which Guernika looks for in its model."""
    tokens = (manifest.get("pipeline") or {}).get("added_tokens") or {}
    return list(tokens.get(component.replace("text_encoder", "tokenizer"), ()))


def _require_unchanged(artifact: Path, manifest: Mapping[str, Any], digests: Digests) -> None:
    for name, facts in manifest["files"].items():
        if digests.of(artifact / name) != facts["sha256"]:
            raise InputError(
                "has changed since it was made: its SHA-256 is not the manifest's",
                where=artifact / name,
                hint="Remove the artifact's folder and run the command that made it again.",
            )
