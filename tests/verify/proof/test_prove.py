"""A run's artifacts proven: each thing once for all that share it, and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.process.progress import Advance
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Effort
from tests.support.checkpoints import make_checkpoint
from verify.batch import Outcome, verify_all
from verify.judge.checks import Check
from verify.proof import work
from verify.proof.keep import ENTRIES, FILE
from verify.proof.tasks import ProofTask

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
name = "tiny"
source.path = "tiny"
[matrix]
attention = ["original", "split_einsum"]
resolution = [RESOLUTIONS]
bits = ["16"]
"""
WIDE, TALL, SMALL = "320x448", "448x320", "224x288"
LEVELS = ("structure", "weights", "graph", "conversion")
Verify = Callable[..., Outcome]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("proof") / "tiny"))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that are done, as texts."""
    told: list[str] = []
    real = work.Bench.do

    def do(bench: work.Bench, task: ProofTask, advance: Advance) -> None:
        told.append(str(task))
        real(bench, task, advance)

    monkeypatch.setattr(work.Bench, "do", do)
    return told


def verified(
    source: Checkpoint,
    out: Path,
    *resolutions: str,
    effort: Effort = "standard",
    components: Sequence[str] = ("unet",),
    more: str = "",
) -> Outcome:
    text = RECIPE.replace("RESOLUTIONS", ", ".join(f'"{one}"' for one in resolutions))
    plan = make_plan(parse_recipe(more + text, where="test"), source, components=components)
    made = run(plan, Snapshot(source.path, None, None, ()), out)
    return verify_all(out, made, plan, effort=effort)


def evidence(outcome: Outcome, component: str = "unet") -> dict[str, list[str]]:
    return {r["artifact"]: r["evidence"][component] for r in outcome.reports}


def executed(done: Sequence[str]) -> list[str]:
    return [task for task in done if not task.startswith(("package", "artifact"))]


def test_what_is_shared_is_done_once_and_never_again(
    source: Checkpoint, tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verified(source, tmp_path, WIDE, TALL)
    assert first.verdict == "pass", first.document
    wide, split = "tiny_original_16-bit_320x448", "tiny_split-einsum_16-bit_320x448"
    assert executed(done) == [
        f"recording of unet of {wide} at {SMALL}",
        f"recording of unet of {wide} at {WIDE}",
        f"numbers of unet of {wide} at {SMALL}",
        f"numbers of unet of {wide} at {WIDE}",
        f"numbers of unet of {split} at {SMALL}",
        f"numbers of unet of {split} at {WIDE}",
    ]
    small = ["weights", "graph", f"numbers {SMALL}"]
    assert evidence(first) == {
        wide: [*small, f"t=999 {WIDE}"],
        split: [*small, f"t=999 {WIDE}"],
        "tiny_original_16-bit_448x320": [*small, f"t=999 {WIDE} of {wide}"],
        "tiny_split-einsum_16-bit_448x320": [*small, f"t=999 {WIDE} of {split}"],
    }
    done.clear()
    again = verified(source, tmp_path, WIDE, TALL)
    assert done == []
    assert json.dumps(again.reports) == json.dumps(first.reports)

    # One more resolution pays for its graphs, whatever its place in the recipe.
    more = verified(source, tmp_path, "384x320", WIDE, TALL)
    assert executed(done) == []
    assert sum(task.startswith("package") for task in done) == 2
    new = evidence(more)["tiny_original_16-bit_384x320"]
    assert new == [*small, f"t=999 {WIDE} of {wide}"]
    assert (
        json.loads((tmp_path / wide / "manifest.json").read_text())["evidence"]["unet"]
        == (evidence(first)[wide])
    )

    # A checker that has changed has found nothing yet.
    done.clear()
    monkeypatch.setattr("verify.proof.keep.code_digest", lambda part: f"another {part}")
    assert verified(source, tmp_path, WIDE).verdict == "pass"
    assert sum(task.startswith("numbers") for task in done) == 4


def test_effort_says_what_is_executed(source: Checkpoint, tmp_path: Path, done: list[str]) -> None:
    quick = verified(source, tmp_path, WIDE, effort="quick")
    small = ["weights", "graph", f"numbers {SMALL}"]
    assert {*map(tuple, evidence(quick).values())} == {tuple(small)}
    assert all(SMALL in task for task in executed(done))
    sizes = {c.get("size") for r in quick.reports for c in r["checks"] if c["metrics"]}
    assert sizes == {SMALL}
    done.clear()
    thorough = verified(source, tmp_path, WIDE, effort="thorough")
    assert {*map(tuple, evidence(thorough).values())} == {("weights", "graph", f"numbers {WIDE}")}
    assert all(WIDE in task for task in executed(done))
    compared = [c for c in thorough.reports[0]["checks"] if c["metrics"]]
    assert len(compared) == 2 * 6  # both halves, every timestep
    assert [r["effort"] for r in (*quick.reports, *thorough.reports)] == ["quick"] * 2 + [
        "thorough"
    ] * 2


def test_what_is_no_larger_than_the_small_size_is_executed_itself(
    source: Checkpoint, tmp_path: Path, done: list[str]
) -> None:
    outcome = verified(source, tmp_path, "64x64", components=["unet", "vae_decoder"])
    assert outcome.verdict == "pass", outcome.document
    assert set(map(tuple, evidence(outcome).values())) == {("weights", "graph", "numbers 64x64")}
    assert all("at 64x64" in task for task in executed(done))


def test_without_the_level_graph_nothing_stands_for_another_size(
    source: Checkpoint, tmp_path: Path
) -> None:
    more = 'verify.levels = ["structure", "conversion"]'
    outcome = verified(source, tmp_path, WIDE, effort="quick", more=more)
    assert {*map(tuple, evidence(outcome).values())} == {(f"numbers {WIDE}",)}


def test_a_fault_at_the_true_size_is_told_of_all_that_it_stands_for(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work.Bench.find_numbers

    def found(bench: work.Bench, task: ProofTask) -> Any:
        findings = real(bench, task)
        if task.own:
            check = Check("conversion", "unet", "t=999 cond", "gate", "fail", message="too far")
            return type(findings)((check,))
        return findings

    monkeypatch.setattr(work.Bench, "find_numbers", found)
    outcome = verified(source, tmp_path, WIDE, TALL)
    assert [r["verdict"] for r in outcome.reports] == ["fail"] * 4
    other = next(r for r in outcome.reports if r["artifact"].endswith(f"original_16-bit_{TALL}"))
    (told,) = [c for c in other["checks"] if c["verdict"] == "fail"]
    assert "tiny_original_16-bit_320x448" in told["gate"]
    assert (told["size"], told["message"]) == (WIDE, "t=999 cond: too far")
    assert other["evidence"]["unet"] == ["weights", "graph", f"numbers {SMALL}"]


def test_findings_that_were_damaged_are_made_again(
    source: Checkpoint, tmp_path: Path, done: list[str]
) -> None:
    first = verified(source, tmp_path, "64x64")
    for file in (tmp_path / ".cache" / ENTRIES).glob(f"*/{FILE}"):
        stat = file.stat()
        file.write_bytes(file.read_bytes()[:-1] + b"]")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done.clear()
    again = verified(source, tmp_path, "64x64")
    assert done
    assert json.dumps(again.reports) == json.dumps(first.reports)


def test_a_package_that_was_changed_fails_with_its_like_unharmed(
    source: Checkpoint, tmp_path: Path
) -> None:
    assert verified(source, tmp_path, WIDE, effort="quick").verdict == "pass"
    package = tmp_path / "tiny_original_16-bit_320x448" / "Unet.mlpackage"
    (model,) = package.rglob("model.mlmodel")
    data = model.read_bytes()
    model.unlink()  # it is shared with the cache
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = verified(source, tmp_path, WIDE, effort="quick")
    verdicts = {r["artifact"]: r["verdict"] for r in outcome.reports}
    assert verdicts == {
        "tiny_original_16-bit_320x448": "fail",
        "tiny_split-einsum_16-bit_320x448": "pass",
    }
