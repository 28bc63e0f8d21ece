"""Reports: JSON as documented, and what it does not prove in each of them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from convert.checkpoint.checkpoint import Checkpoint
from tests.support.packages import json_of
from verify.judge.checks import Results
from verify.question import Evidence, Question
from verify.reference.recording import Recording
from verify.reports import report
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def test_json_is_as_documented(good: Results) -> None:
    document = json_of(good)
    assert (document["schema"], document["verdict"], document["runtime"]) == (1, "pass", "torch")
    assert "Neural Engine" in document["scope"]
    check = next(c for c in document["checks"] if c["output"] == "noise_pred")
    assert check["case"] == "t=999 uncond"
    metrics = check["metrics"]
    assert {"snr_db", "nrmse", "cosine", "max_abs", "p99_abs", "finite"} <= metrics.keys()
    assert metrics["fp16_snr_db"] > 40
    assert check["gate"].startswith("snr_db >= 35")


def test_the_same_artifact_has_the_same_report(
    base_artifact: Path, base: Checkpoint, recording: Recording
) -> None:
    first, second = (
        verify(
            base_artifact,
            Evidence(base, recording=recording),
            Question(components=["text_encoder"], runtime="torch"),
        )
        for _ in range(2)
    )
    assert json_of(first) == json_of(second)


def test_junit_has_a_case_for_each_check_by_a_name_of_its_own(good: Results) -> None:
    root = ElementTree.fromstring(report.junit(good))
    names = [(c.get("classname"), c.get("name")) for c in root.iter("testcase")]
    assert ("conversion.unet", "t=999 cond") in names
    assert ("conversion.text_encoder", "full prompt pooled_outputs") in names
    assert [c for c, _ in names] == [f"{c.level}.{c.component}" for c in good.checks]
    assert all((n or "").startswith(c.case) for (_, n), c in zip(names, good.checks, strict=True))
    assert len(names) == len(set(names))  # some CI systems count a name once
    assert root.get("tests") == str(len(good.checks))
    assert not list(root.iter("failure"))


def test_every_report_says_what_it_does_not_prove(
    artifact: Path, base: Checkpoint, recording: Recording
) -> None:
    shutil.rmtree(artifact / "Unet.mlpackage")
    results = verify(
        artifact,
        Evidence(base, recording=recording),
        Question(runtime="torch", components=["unet", "text_encoder"]),
    )
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(report.table(results))
    for text in (console.export_text(), report.markdown(results), report.junit(results)):
        assert "a particular Neural Engine may differ" in text
        assert "Unet.mlpackage is missing" in text
        assert "10·log10(Σref² / Σ(ref − out)²)" in text
