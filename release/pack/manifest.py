"""The provenance of what is released: in every archive, and once for the release as a whole.

A bundle's manifest is the artifact's (see `convert.run.manifest`), so `verify` and `lint` can start
from it, with the compiled models' files in place of the packages', the deviations from Apple's
graphs and what the verification found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.disk import digest_file
from convert.files.documents import is_local
from convert.files.json_files import FileMissing, read_json, read_text
from convert.networks.deviations import DEVIATIONS
from convert.run.manifest import FILE, SCHEMA, read, text
from verify.reports import figures
from verify.reports.saved import reports_of

__all__ = ["FILE", "SCHEMA", "bundle_manifest", "file_facts", "read", "release_manifest", "text"]

EVIDENCE = ("effort", "evidence")  # beside a verdict
SHARED = ("source", "recipe", "versions")  # the same for all archives of a release

# The oldest system that reads each Core ML specification version.
# Source: availability in the metadata.json that coremlcompiler writes.
SYSTEMS = {8: "macOS 14, iOS 17", 9: "macOS 15, iOS 18", 10: "macOS 26, iOS 26"}


def read_report(file: Path, artifact: Mapping[str, Any]) -> dict[str, Any] | None:
    """The verification report of this very artifact, or None: none there, or one of other bytes.

    Raises:
        InputError: it is no report, or a value in it is of another kind.
    """
    try:
        found = reports_of(read_json(file), file)
    except FileMissing:
        return None
    same = [r for r in found if r.get("fingerprint") == artifact["fingerprint"]]
    return same[0] if same else None


def bundle_manifest(
    artifact: Mapping[str, Any],
    components: Mapping[str, str],
    files: Mapping[str, Mapping[str, Any]],
    report: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a bundle.

    Args:
        artifact: the manifest of the artifact that was compiled.
        components: component → compiled model.
        files: size and sha256 of the bundle's files, but for this one.
        report: its verification, of `verify.reports.report.to_json`; None if it has none.
    """
    unproven = {key: value for key, value in artifact.items() if key not in EVIDENCE}
    return {
        **unproven,
        "kind": "bundle",
        "components": dict(components),
        "files": dict(sorted(files.items())),
        "minimum_system": SYSTEMS[artifact["specification_version"]],
        "deviations": [asdict(d) for d in deviations(components)],
        "verdict": report["verdict"] if report else None,
        **_evidence(report),
        "verification": verification(report) if report else None,
        "packages": {
            name: facts for name, facts in artifact["files"].items() if ".mlpackage/" in name
        },
    }


def deviations(components: Iterable[str]) -> list[Any]:
    """Where the graphs of these components differ from Apple's."""
    names = tuple(components)
    return [
        d
        for d in DEVIATIONS
        if d.component == "all" or any(n.startswith(d.component) for n in names)
    ]


def verification(report: Mapping[str, Any]) -> dict[str, Any]:
    """How a verification came out: verdict, what was done for it, gates and numbers of checks.

    Nothing measured, because the last digits of that differ from run to run, and archives must not.
    """
    checks = report["checks"]
    levels = list(dict.fromkeys(c["level"] for c in checks))
    return {
        "verdict": report["verdict"],
        **_evidence(report),
        "policy": report["policy"],
        "runtime": report["runtime"],
        "scope": report["scope"],
        "versions": report.get("versions", {}),
        "checks": {
            level: {
                v: sum(c["level"] == level and c["verdict"] == v for c in checks)
                for v in ("pass", "fail", "indeterminate")
            }
            for level in levels
        },
        "gates": {
            level: {c["component"]: c["gate"] for c in _compared(checks) if c["level"] == level}
            for level in levels
        },
    }


def _evidence(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was done, in the report's words; of an older report, or without one, nothing."""
    return {key: report[key] for key in EVIDENCE if report and report.get(key)}


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a verification measured: the figures of `verify.reports.figures` and the images.

    `lowest_snr_db` has the lowest SNR of each component by level: of its outputs, not of single
    weights.
    """
    outputs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for check in report["checks"]:
        if figures.kind(check) not in (None, "weights"):
            level = outputs.setdefault(check["level"], {})
            level.setdefault(check["component"], []).append(check)
    found = figures.figures_json(report)
    return {
        "snr_db": _rounded(found["snr_db"]),
        "program_snr_db": _rounded(found["program_snr_db"]),
        "components": {
            component: {name: _rounded(value) for name, value in both.items()}
            for component, both in found["components"].items()
        },
        "lowest_snr_db": {
            level: {
                c: _rounded(min(of, key=figures.snr)["metrics"].get("snr_db"))
                for c, of in by.items()
            }
            for level, by in outputs.items()
        },
        "conversion_snr_db": _rounded(found["program_snr_db"]),
        "images": [
            {"case": g["case"], **{k: _rounded(g.get(k)) for k in ("psnr_db", "ssim")}}
            for g in report.get("generations") or []
        ],
    }


def _compared(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [c for c in checks if c["metrics"] and c["metrics"].get("snr_db") is not None]


def release_manifest(
    archives: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The manifest of a release: its archives, and once what their manifests share.

    Args:
        archives: with their bundles' manifests.
        known: those to list, which may be more while a release is being made; `archives` if None.

    Raises:
        InputError: the archives are of several checkpoints, recipes or versions.
    """
    shared: dict[str, Any] = {}
    for key in SHARED:
        values = {json.dumps(a["manifest"][key], sort_keys=True) for a in archives}
        if len(values) != 1:
            names = ", ".join(a["manifest"]["artifact"] for a in archives[:3])
            raise InputError(
                f"the artifacts differ in their {key}: {names}, …",
                hint="A release is made from the artifacts of one run; run the recipe again.",
            )
        shared[key] = json.loads(values.pop())
    listed = []
    for archive in archives if known is None else known:
        own = {k: v for k, v in archive["manifest"].items() if k not in SHARED}
        listed.append({**archive, "manifest": own})
    return {
        "schema": SCHEMA,
        "kind": "release",
        "name": shared["recipe"]["name"],
        **shared,
        "archives": listed,
    }


def file_facts(
    folder: Path, digest: Callable[[Path], str] = digest_file
) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by path in it."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sha256_sums(files: Mapping[str, str]) -> str:
    """`SHA256SUMS` as `sha256sum --check` reads it: digest, two spaces, path."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))


def read_sums(file: Path) -> dict[str, str]:
    """The digests of a `SHA256SUMS`; raises FileMissing, or InputError as `parse_sums` does."""
    return parse_sums(read_text(file), file)


def parse_sums(content: str, where: object = "SHA256SUMS") -> dict[str, str]:
    """The digests of a `SHA256SUMS`, by path.

    Raises:
        InputError: a line is not a digest and a file beside it.
    """
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        digest, _, name = line.partition("  ")
        name = name.removeprefix("*")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not is_local(name):
            raise InputError(f"line {number} is not a digest and a file", where=where)
        found[name] = digest
    return found


def _rounded(value: float | str | None) -> float | str | None:
    """A figure as people read it; "inf" is a string, because JSON has no token for it."""
    if value is None or not math.isfinite(float(value)):
        return None if value is None else str(value)
    return round(float(value), 2)
