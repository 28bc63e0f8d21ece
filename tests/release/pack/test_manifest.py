"""A bundle's manifest says what was verified and what was packed, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from convert.errors import InputError
from convert.networks.deviations import DEVIATIONS
from release.pack import manifest

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
