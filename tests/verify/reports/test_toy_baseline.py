"""The toy is as good as when its results were accepted (`make baseline`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.builtin import read_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from verify.batch import verify_all
from verify.judge.policy import load_policy
from verify.reports.baseline import read_baseline
from verify.reports.diff import diff
from verify.reports.diff_text import markdown

BASELINE = Path(__file__).parents[2] / "data" / "toy_baseline.json"
LEVELS = ("structure", "conversion", "compression")  # whole runs are compared by `make regression`
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not BASELINE.is_file(), reason="the toy has no baseline: make baseline"),
]


def test_every_artifact_of_the_recipe_has_a_baseline(toy: Path) -> None:
    plan = make_plan(read_recipe("toy"), open_checkpoint(toy))
    accepted = {report["artifact"] for report in read_baseline(BASELINE)}
    assert accepted == {planned.artifact.name for planned in plan.artifacts}


def test_no_artifact_is_worse_than_the_baseline(toy: Path, tmp_path: Path) -> None:
    recipe = read_recipe("toy")
    asked = recipe.verify.model_copy(update={"levels": LEVELS})
    recipe = recipe.model_copy(update={"verify": asked})
    old = read_baseline(BASELINE)
    plan = make_plan(recipe, open_checkpoint(toy))
    made = run(plan, Snapshot(toy, None, None, ()), tmp_path / "out", jobs=1)
    new = verify_all(tmp_path / "out", made, plan).reports
    assert len(new) == len(old) > 1
    found = diff([at_levels(report) for report in old], new, load_policy())
    assert found, markdown(found)


def at_levels(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "checks": [c for c in report["checks"] if c["level"] in LEVELS]}
