"""A bundle's manifest says what was verified and what was packed, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.errors import InputError
from convert.networks.deviations import DEVIATIONS
from release.pack import manifest
from release.pack.pack import read_release
from release.pack.packable import Packable

ARTIFACT: dict[str, Any] = {
    "artifact": "x",
    "fingerprint": "f",
    "specification_version": 8,
    "files": {
        "Unet.mlpackage/Manifest.json": {"size": 1, "sha256": "a"},
        "vocab.json": {"size": 2, "sha256": "b"},
    },
}


def check(level: str, component: str, verdict: str, snr_db: float | None = None) -> dict[str, Any]:
    metrics = {} if snr_db is None else {"snr_db": snr_db}
    gate = f"{level} of {component}"
    return {
        "level": level,
        "component": component,
        "verdict": verdict,
        "gate": gate,
        "metrics": metrics,
    }


REPORT: dict[str, Any] = {
    "verdict": "fail",
    "policy": {},
    "runtime": "torch",
    "scope": "here",
    "checks": [
        check("structure", "unet", "pass"),
        check("structure", "unet", "fail"),
        check("conversion", "unet", "pass", 40.0),
        check("compression", "unet", "indeterminate", 20.0),
        check("compression", "vae_decoder", "pass", 30.0),
    ],
}


def test_checks_are_counted_by_level_and_verdict() -> None:
    assert manifest.verification(REPORT)["checks"] == {
        "structure": {"pass": 1, "fail": 1, "indeterminate": 0},
        "conversion": {"pass": 1, "fail": 0, "indeterminate": 0},
        "compression": {"pass": 1, "fail": 0, "indeterminate": 1},
    }


def test_gates_are_those_of_a_levels_own_numbers() -> None:
    assert manifest.verification(REPORT)["gates"] == {
        "structure": {},
        "conversion": {"unet": "conversion of unet"},
        "compression": {
            "unet": "compression of unet",
            "vae_decoder": "compression of vae_decoder",
        },
    }


def test_packages_are_the_artifacts_without_its_other_files() -> None:
    bundle = manifest.bundle_manifest(ARTIFACT, {"unet": "Unet.mlmodelc"}, {}, None)
    assert set(bundle["packages"]) == {"Unet.mlpackage/Manifest.json"}


def test_deviations_are_those_of_the_components_that_are_there() -> None:
    assert {d.component for d in DEVIATIONS} > {"all", "unet"}
    found = {d.component for d in manifest.deviations(["vae_decoder"])}
    assert "unet" not in found
    assert {d.component for d in manifest.deviations(["unet", "vae_decoder"])} >= {"all", "unet"}


def test_evidence_stands_beside_the_verdict_and_is_the_reports() -> None:
    artifact = {
        **ARTIFACT,
        "verdict": "pass",
        "effort": "thorough",
        "evidence": {"unet": ["graph"]},
    }
    told = {"effort": "quick", "evidence": {"unet": ["weights"]}}
    report = {**REPORT, **told}
    found = manifest.bundle_manifest(artifact, {}, {}, report)
    assert {key: found[key] for key in ("verdict", *told)} == {"verdict": "fail", **told}
    assert {key: found["verification"][key] for key in told} == told
    for other in (REPORT, None):  # of an older version, and none: nothing is said
        bundle = manifest.bundle_manifest(artifact, {}, {}, other)
        assert not {"effort", "evidence"} & bundle.keys()
        assert not {"effort", "evidence"} & (bundle["verification"] or {}).keys()


def test_another_evidence_makes_another_archive() -> None:
    from verify.judge.policy import load_policy

    report = {**REPORT, "code": load_policy().made_by}
    both = [
        Packable(Path("x"), ARTIFACT, {**report, "evidence": {"unet": words}})
        for words in (["graph"], ["graph", "weights"])
    ]
    assert both[0].fingerprint != both[1].fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [("effort", "full"), ("evidence", {"unet": ["everything"]}), ("evidence", [])],
)
def test_a_release_with_a_wrong_word_of_evidence_is_refused(
    base_release: Path, tmp_path: Path, key: str, value: object
) -> None:
    document = json.loads((base_release / "manifest.json").read_text())
    document["archives"][0]["manifest"][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"`archives\[0\]\.manifest\.{key}"):
        read_release(tmp_path)


@pytest.mark.parametrize("others", [1, 2])
def test_archives_of_several_checkpoints_make_no_release(others: int) -> None:
    shared = {"recipe": {"name": "r"}, "versions": {}}
    archives = [
        {"manifest": {**shared, "artifact": str(number), "source": {"commit": min(number, others)}}}
        for number in range(3)
    ]
    with pytest.raises(InputError, match=r"differ in their source: 0, 1, 2"):
        manifest.release_manifest(archives)


@pytest.mark.parametrize("line", ["0" * 63, "0" * 64 + "  ../secret", "0" * 64 + "  /etc/passwd"])
def test_a_line_that_names_no_file_beside_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="line 2 is not a digest and a file"):
        manifest.parse_sums(f"{'1' * 64}  a.zip\n{line}\n")
