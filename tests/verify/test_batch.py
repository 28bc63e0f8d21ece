"""A recipe that asks for pictures: made once by the reference, kept beside the reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.plan import Plan, make_plan
from convert.process.progress import Advance
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Resolution
from verify.batch import Outcome, verify_all
from verify.judge.policy import Policy, load_policy
from verify.proof import work
from verify.proof.tasks import ProofTask
from verify.reports.images import image_paths
from verify.reports.summary import summary_markdown
from verify.sampling import sampling

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
    traced: list[Resolution] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        traced.append(arguments[2])
        return sampling.trace_all(*arguments, **options)

    monkeypatch.setattr(work, "trace_all", counted)
    outcome = verify_all(tmp_path, made, plan)
    assert outcome.verdict == "pass", outcome.document
    assert len(traced) == 1  # the reference runs once for both artifacts
    for report in outcome.reports:
        cases = [g["case"] for g in report["generations"]]
        assert cases == ["euler_a text-to-image 1", "euler_a image-to-image 1"]
        assert {c["level"] for c in report["checks"]} == {"generation"}
        assert all((tmp_path / "reports" / p).is_file() for p in image_paths(report))
    assert "pipeline" in summary_markdown(outcome.reports)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("what was found still holds")

    monkeypatch.setattr(work, "trace_all", never)
    picture = tmp_path / "reports" / image_paths(outcome.reports[0])[0]
    picture.unlink()
    again = verify_all(tmp_path, made, plan)
    assert json.dumps(again.reports) == json.dumps(outcome.reports)
    assert picture.is_file()
    other = plan_of(RECIPE.replace("steps = 2", "steps = 3"), base)
    with pytest.raises(AssertionError, match="still holds"):
        verify_all(tmp_path, made, other)


COMPRESSED = """
name = "base"
source.path = "base"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["16", "4"] }
verify.gates = [{ bits = "4", component = "text_encoder", min_snr_db = MINIMUM }]
"""
POLICY = """
schema = 1
version = "2"
[[gate]]
level = "conversion"
components = ["text_encoder"]
metric = "snr_db"
at_least = MINIMUM
why = "a test"
"""


def test_gates_that_change_judge_again_what_was_measured(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's gates, and the policy's although nobody raised its version."""
    source = open_checkpoint(toy)
    measured: list[str] = []
    real = work.Bench.do

    def counted(bench: work.Bench, task: ProofTask, advance: Advance) -> None:
        if task.kind == "numbers":
            measured.append(str(task))
        real(bench, task, advance)

    monkeypatch.setattr(work.Bench, "do", counted)
    out = tmp_path / "out"

    def outcome(recipe: int, policy: int | None) -> Outcome:
        text = COMPRESSED.replace("MINIMUM", f"{recipe}.0")
        plan = make_plan(parse_recipe(text, where="test"), source, components=["text_encoder"])
        made = run(plan, Snapshot(toy, None, None, ()), out)
        rules: Policy = load_policy()
        if policy is not None:
            (tmp_path / "policy.toml").write_text(POLICY.replace("MINIMUM", f"{policy}.0"))
            rules = load_policy(tmp_path / "policy.toml")
        monkeypatch.setattr("verify.batch.load_policy", lambda: rules)
        return verify_all(out, made, plan)

    def verdicts(found: Outcome) -> list[str]:
        return [report["verdict"] for report in found.reports]

    assert verdicts(outcome(1, None)) == ["pass", "pass"]
    assert len(measured) == 2
    assert verdicts(outcome(1, 20)) == ["pass", "pass"]
    assert verdicts(outcome(1, 200)) == ["fail", "fail"]
    again = outcome(99, 20)
    assert len(measured) == 2
    assert verdicts(again) == ["pass", "fail"]
    failed = [c["message"] for c in again.reports[1]["checks"] if c["verdict"] == "fail"]
    assert failed
    assert all("snr_db >= 99 is asked" in message for message in failed), failed
    # Judged again, they are what they would be if they were measured again.
    shutil.rmtree(out / ".cache" / "proofs")
    fresh = outcome(99, 20)
    assert len(measured) == 4
    assert json.dumps(fresh.reports) == json.dumps(again.reports)
