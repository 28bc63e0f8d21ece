"""A recipe that asks for pictures: made once by the reference, kept beside the reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.checkpoint import Checkpoint
from convert.download import Snapshot
from convert.plan import Plan, make_plan
from convert.recipe import parse_recipe
from convert.run import run
from verify import sampling
from verify.campaign import verify_all
from verify.pictures import image_paths
from verify.summary import summary_markdown

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
name = "base"
source.path = "base"
matrix = { attention = ["original", "split_einsum"], resolution = ["64x64"] }
[verify]
prompts = ["the horse"]
steps = 2
scheduler = "euler_a"
levels = ["generation"]
"""


def plan_of(recipe: str, checkpoint: Checkpoint) -> Plan:
    return make_plan(parse_recipe(recipe, where="test"), checkpoint)


def test_pictures_are_made_with_every_artifact_and_kept(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(RECIPE, base)
    made = run(plan, Snapshot(base.path, None, None, ()), tmp_path)
    told: list[str] = []
    outcome = verify_all(tmp_path, made, plan, progress=told.append)
    assert outcome.verdict == "pass", outcome.document
    # The reference runs once for both artifacts.
    steps = [line for line in told if "reference euler_a text-to-image" in line]
    assert len(steps) == 2
    for report in outcome.reports:
        cases = [g["case"] for g in report["generations"]]
        assert cases == ["euler_a text-to-image 1", "euler_a image-to-image 1"]
        assert {c["level"] for c in report["checks"]} == {"generation"}
        assert all((tmp_path / "reports" / p).is_file() for p in image_paths(report))
    assert "pipeline" in summary_markdown(outcome.reports)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the reports are still true")

    monkeypatch.setattr(sampling, "trace_all", never)
    again = verify_all(tmp_path, made, plan)
    assert json.dumps(again.document) == json.dumps(outcome.document)
    picture = tmp_path / "reports" / image_paths(outcome.reports[0])[0]
    picture.unlink()
    with pytest.raises(AssertionError, match="still true"):
        verify_all(tmp_path, made, plan)
    other = plan_of(RECIPE.replace("steps = 2", "steps = 3"), base)
    with pytest.raises(AssertionError, match="still true"):
        verify_all(tmp_path, made, other)
