"""A sample of coremltools' own tests of MIL's operations: nothing is wrong, and faults are seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import report
from tests.conformance.cases import sample

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sample_of_coremltools_tests_and_planted_faults(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "tests.conformance", "--cases", "250", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = report.summary(report.Kept(**json.loads(kept.read_text("utf-8"))))
    assert found.cases["right"] > 120
    assert found.left["left out"] + found.left["no program"] < 100


def kept(*verdicts: str, planted: bool = True, message: str = "") -> report.Kept:
    programs = [{"verdict": v, "message": message, "error": 0.0} for v in verdicts]
    tests = {"a": {"outcome": "passed", "text": "", "programs": programs}}
    return report.Kept(10, tests, {"a": [True, planted], "b": [True], "c": [True], "d": []})


@pytest.mark.parametrize("verdict", ["wrong", "crash", "silent"])
def test_one_bad_program_is_a_bad_run(verdict: str) -> None:
    assert report.summary(kept("right")).is_good
    found = report.summary(kept("right", verdict, "refused", message="write_state"))
    assert not found.is_good
    assert found.cases == {verdict: 1}
    assert found.problems == [f"a: {verdict}: write_state"]


def test_a_refusal_must_be_in_readme() -> None:
    good = report.summary(kept("refused", message="no implementation of cond (op 'x')"))
    assert (good.refused, good.problems) == ({"cond": 1}, [])
    bad = report.summary(kept("refused", message="no implementation of relu (op 'x')"))
    assert bad.problems == ["a: refused, not in README: no implementation of relu (op 'x')"]


def test_a_fault_that_was_not_seen_is_a_bad_run() -> None:
    assert report.controls_are_seen(kept("right"))
    assert not report.controls_are_seen(kept("right", planted=False))
    assert not report.controls_are_seen(report.Kept(10, {}, {"a": [True], "b": [True], "c": []}))


class Item:
    def __init__(self, name: str) -> None:
        self.nodeid = name


def test_a_sample_takes_one_of_each_kind_in_turn() -> None:
    items = [Item(f"test_a[{n}]") for n in range(50)] + [Item("test_b[0]"), Item("test_b[1]")]
    chosen = [item.nodeid for item in sample(items, 5, 0)]  # type: ignore[arg-type]
    assert {name.partition("[")[0] for name in chosen[:2]} == {"test_a", "test_b"}
    assert [name.partition("[")[0] for name in chosen].count("test_b") == 2
    assert chosen == [item.nodeid for item in sample(items, 5, 0)]  # type: ignore[arg-type]
    assert len(sample(items, 1000, 0)) == 52  # type: ignore[arg-type]
