"""Saved results judged again: without inference, and never passing what was not measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convert.errors import InputError
from verify.judge.checks import Results
from verify.judge.policy import load_policy
from verify.reports.recheck import recheck
from verify.reports.report import to_json
from verify.reports.saved import read_reports

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = """schema = 1
version = "other"

[[gate]]
level = "conversion"
components = ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]
metric = "snr_db"
at_least = {snr}
why = "a test"

[[gate]]
level = "generation"
components = ["pipeline"]
outputs = ["image"]
metric = "ssim"
at_least = 0.9
why = "a test"
"""
IMAGE = {
    "level": "generation",
    "component": "pipeline",
    "case": "euler 1",
    "output": "image",
    "metrics": {"snr_db": 30.0, "cosine": 0.9999, "finite": True, "psnr_db": 35.0, "ssim": 0.95},
    "gate": "psnr_db >= 28",
    "verdict": "pass",
    "message": "",
}


@pytest.fixture
def saved(good: Results, tmp_path: Path) -> Path:
    """The report of `good`, with a picture, as a file."""
    document = to_json(good)
    document["checks"].append(IMAGE)
    (tmp_path / "report.json").write_text(json.dumps(document))
    return tmp_path / "report.json"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY.format(snr=20))
    return tmp_path / "policy.toml"


def change(report: Path, output: str, **metrics: Any) -> None:
    document = json.loads(report.read_text())
    check = [c for c in document["checks"] if c["output"] == output][-1]
    check["metrics"].update(metrics)
    report.write_text(json.dumps(document))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a Python that has neither torch nor coremltools."""
    code = (
        "import sys\n"
        "for name in ('torch', 'coremltools', 'diffusers', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from sdxl_coreml import app; app.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "recheck", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def test_the_same_policy_gives_the_same_report(good: Results) -> None:
    document = json.loads(json.dumps(to_json(good)))
    assert recheck(document, load_policy()) == document


def test_another_policy_needs_no_inference(saved: Path, policy: Path) -> None:
    found = command(saved, "--policy", policy, "--json", "-")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert (document["verdict"], document["policy"]) == ("pass", "other")
    assert {c["gate"] for c in document["checks"] if c["level"] == "conversion"} == {"snr_db >= 20"}
    policy.write_text(POLICY.format(snr=200))
    found = command(saved, "--policy", policy)
    assert found.returncode == 1
    assert "snr_db >= 200 is asked" in found.stdout


def test_a_missing_scorer_is_indeterminate_and_never_a_pass(saved: Path, policy: Path) -> None:
    change(saved, "image", ssim=None)
    found = command(saved, "--policy", policy)
    assert found.returncode == 3, found.stderr
    assert "ssim was not measured" in found.stdout
    assert command(saved, "--policy", policy, "--strict").returncode == 1


def test_what_is_not_finite_fails_whatever_is_asked(saved: Path, policy: Path) -> None:
    change(saved, "noise_pred", finite=False, snr_db=None)
    (report,) = read_reports(saved)
    assert recheck(report, load_policy(policy))["verdict"] == "fail"


def test_checks_without_numbers_keep_their_verdict(saved: Path, policy: Path) -> None:
    (report,) = read_reports(saved)
    report["checks"][0] = {**report["checks"][0], "verdict": "fail", "message": "files differ"}
    again = recheck(report, load_policy(policy))
    assert (again["verdict"], again["checks"][0]) == ("fail", report["checks"][0])


def test_the_recipes_gate_on_compression_stays(saved: Path, policy: Path) -> None:
    (report,) = read_reports(saved)
    check = next(c for c in report["checks"] if c["output"] == "noise_pred")
    check.update(level="compression", gate="snr_db >= 20", verdict="pass")
    for snr, verdict in ((25.0, "pass"), (15.0, "fail")):
        check["metrics"]["snr_db"] = snr
        again = recheck(report, load_policy(policy))
        found = next(c for c in again["checks"] if c["level"] == "compression")
        assert (found["gate"], found["verdict"]) == ("snr_db >= 20", verdict)


@pytest.mark.parametrize(("bits", "gate"), [("6", "psnr_db >= 28 and ssim >= 0.9"),
                                            ("16", "ssim >= 0.9")])  # fmt: skip
def test_the_recipes_gate_on_compressed_pictures_stays(
    bits: str, gate: str, saved: Path, policy: Path
) -> None:
    (report,) = read_reports(saved)
    (found,) = (
        c for c in recheck({**report, "bits": bits}, load_policy(policy))["checks"]
        if c["output"] == "image" and c["level"] == "generation"
    )  # fmt: skip
    assert found["gate"] == gate


def test_a_policy_that_forgot_a_component_is_refused(saved: Path, policy: Path) -> None:
    policy.write_text(policy.read_text().replace('"text_encoder", "text_encoder_2", ', ""))
    found = command(saved, "--policy", policy)
    assert found.returncode == 2
    assert "no gate for hidden_embeds of text_encoder" in found.stderr


def test_a_run_is_read_from_its_folder_its_reports_or_its_summary(
    saved: Path, policy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "reports"
    folder.mkdir(parents=True)
    (report,) = read_reports(saved)
    names = ["a", "b"]
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({**report, "artifact": name}))
    summary = {"schema": 1, "verdict": "pass", "results": [{"artifact": n} for n in names]}
    (folder / "summary.json").write_text(json.dumps(summary))
    for path in (tmp_path / "out", folder, folder / "summary.json"):
        assert [r["artifact"] for r in read_reports(path)] == names
    again = tmp_path / "again.json"
    assert command(folder, "--policy", policy, "--json", again).returncode == 0
    assert [r["policy"] for r in read_reports(again)] == ["other", "other"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"schema": 2, "checks": []}',
        '{"schema": 1, "checks": []}',
        '{"schema": 1, "reports": []}',
        '{"schema": 1, "results": [{"artifact": "gone"}]}',
    ],
)
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError):
        read_reports(tmp_path / "report.json")
    with pytest.raises(InputError):
        read_reports(tmp_path / "absent.json")
