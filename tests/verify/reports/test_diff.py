"""Baselines and comparisons: only sound results are accepted, and nothing worse goes unseen."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.errors import InputError
from convert.values import Effort
from tests.support.evidence import evidence
from verify.judge.checks import Results
from verify.judge.gates import HIGHER_IS_BETTER
from verify.judge.policy import load_policy
from verify.reports.baseline import bless, read_baseline, write_baseline
from verify.reports.diff import diff
from verify.reports.diff_text import markdown, table
from verify.reports.report import to_json
from verify.reports.saved import read_reports

pytestmark = pytest.mark.usefixtures("one_thread")
Report = dict[str, Any]
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def report(good: Results) -> Report:
    return dict(json.loads(json.dumps(to_json(good))))


def edited(report: Report, change: Callable[[Report], Any], level: str = "conversion") -> Report:
    """A copy with one check of the level, and the UNet, changed."""
    again = copy.deepcopy(report)
    checks = again["checks"]
    change(next(c for c in checks if c["level"] == level and c["component"] == "unet"))
    return again


def test_results_are_as_good_as_themselves(report: Report) -> None:
    found = diff([report], [report], load_policy())
    assert found
    assert (found.changes, found.compared) == ((), len(report["checks"]))


NUMBERS = ("snr_db", "nrmse", "cosine", "max_abs", "p99_abs", "fp16_error_ratio")


@SHARED
@given(data=st.data(), metric=st.sampled_from(NUMBERS))
def test_any_single_number_that_is_worse_fails(
    data: st.DataObject, metric: str, report: Report
) -> None:
    policy = load_policy()
    (limit,) = (
        t.limit for t in policy.tolerances if t.metric == metric and "conversion" in t.levels
    )
    again = copy.deepcopy(report)
    half = [c for c in again["checks"] if c["metrics"] and c["metrics"]["fp16_error_ratio"]]
    check = data.draw(st.sampled_from(half))
    old = check["metrics"][metric]
    more = data.draw(st.floats(1.001, 100))
    new = old - limit * more if metric in HIGHER_IS_BETTER else old * limit * more
    check["metrics"][metric] = new
    found = diff([report], [again], policy)
    assert [(c.kind, c.worse) for c in found.changes] == [("number", True)]
    assert check["case"] in found.worse[0].place
    back = diff([again], [report], policy)
    assert back
    assert [(c.kind, c.worse) for c in back.changes] == [("number", False)]


@SHARED
@given(data=st.data(), part=st.floats(0, 0.99))
def test_within_the_tolerance_nothing_is_worse(
    data: st.DataObject, part: float, report: Report
) -> None:
    again = copy.deepcopy(report)
    check = data.draw(st.sampled_from([c for c in again["checks"] if c["metrics"]]))
    check["metrics"]["snr_db"] -= 1.5 * part
    assert diff([report], [again], load_policy())


def test_beyond_what_matters_numbers_are_not_compared(report: Report) -> None:
    again = copy.deepcopy(report)
    check = next(c for c in again["checks"] if c["output"] == "image")
    assert check["metrics"]["snr_db"] > 100
    check["metrics"].update(snr_db=95.0, max_abs=1.0)
    assert diff([report], [again], load_policy())
    check["metrics"]["snr_db"] = 85.0
    assert not diff([report], [again], load_policy())


WORSE: dict[str, tuple[str, Callable[[Report], Any]]] = {
    "a looser gate": ("gate", lambda c: c.update(gate=c["gate"].replace("35", "30"))),
    "a gate less": ("gate", lambda c: c.update(gate="snr_db >= 35")),
    "no gate": ("gate", lambda c: c.update(gate="finite")),
    "another gate": ("gate", lambda c: c.update(gate="looks fine")),
    "failed": ("verdict", lambda c: c.update(verdict="fail", message="bad")),
    "not judged": ("verdict", lambda c: c.update(verdict="indeterminate", message="unknown")),
    "nothing measured": ("vanished", lambda c: c.update(metrics=None)),
    "a measure less": ("vanished", lambda c: c["metrics"].update(fp16_error_ratio=None)),
    "not a number": ("number", lambda c: c["metrics"].update(cosine=None)),
}


@pytest.mark.parametrize("name", WORSE)
def test_what_is_asked_or_seen_no_more_fails(name: str, report: Report) -> None:
    kind, change = WORSE[name]
    found = diff([report], [edited(report, change)], load_policy())
    assert {c.kind for c in found.worse} == {kind}
    assert "unet" in found.worse[0].place


def test_a_tighter_gate_is_reported_and_passes(report: Report) -> None:
    tighter = edited(report, lambda c: c.update(gate=c["gate"].replace("35", "45")))
    found = diff([report], [tighter], load_policy())
    assert found
    assert [(c.kind, c.new) for c in found.changes] == [("gate", "snr_db >= 45")]


@pytest.mark.parametrize(
    ("keep", "where"),
    [
        (lambda c: c["level"] != "structure", "structure"),
        (lambda c: c["component"] != "vae_encoder", "conversion · vae_encoder"),
        (lambda c: c["case"] != "t=500 cond", "conversion · unet · t=500 cond · noise_pred"),
    ],
)
def test_what_vanished_is_named(keep: Callable[[Report], bool], where: str, report: Report) -> None:
    less = {**report, "checks": [c for c in report["checks"] if keep(c)]}
    found = diff([report], [less], load_policy())
    assert f"{report['artifact']} · {where}" in {c.place for c in found.worse}
    assert {c.kind for c in found.worse} == {"vanished"}
    assert len(found.worse) <= 2
    assert diff([less], [report], load_policy())  # new checks that pass are fine
    gone = diff([report, {**report, "artifact": "b"}], [report], load_policy())
    assert [c.place for c in gone.worse] == ["b"]


def test_a_new_check_that_fails_is_worse(report: Report) -> None:
    check = {**report["checks"][-1], "case": "new", "verdict": "fail", "message": "black"}
    assert not diff([report], [{**report, "checks": [*report["checks"], check]}], load_policy())


def test_nothing_in_common_is_not_a_pass(report: Report, tmp_path: Path) -> None:
    other = [{**report, "artifact": name} for name in ("a", "b")]
    with pytest.raises(InputError, match="nothing was compared"):
        diff([report], other, load_policy())
    (tmp_path / "policy.toml").write_text(
        'schema = 1\nversion = "x"\n[[gate]]\nlevel = "conversion"\ncomponents = ["unet"]\n'
        'metric = "snr_db"\nat_least = 1\nwhy = "x"\n'
    )
    with pytest.raises(InputError, match=r"no \[\[tolerance\]\]"):
        diff([report], [report], load_policy(tmp_path / "policy.toml"))


def test_a_comparison_is_told_to_people_and_machines(report: Report) -> None:
    from rich.console import Console

    worse = edited(report, lambda c: c["metrics"].update(snr_db=36.0))
    found = diff([report], [worse], load_policy())
    console = Console(width=200, record=True)
    console.print(table(found))
    for text in (console.export_text(), markdown(found)):
        assert "fail: " in text
        assert "snr_db 36" in text
    document = found.to_json()
    assert document["verdict"] == "fail"
    assert json.dumps(document)


def test_a_baseline_is_written_whole_and_repeatably(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "new" / "baseline.json"
    write_baseline(file, bless([report], "the first"))
    first = file.read_bytes()
    write_baseline(file, bless(read_reports(file), "the first"))
    assert file.read_bytes() == first
    assert list(file.parent.iterdir()) == [file]
    assert diff(read_baseline(file), [report], load_policy())
    assert len(first.splitlines()) > len(report["checks"])  # one a line, for reviews


def test_a_baseline_edited_by_hand_is_refused(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, bless([report, {**report, "artifact": "b"}], "the first"))
    assert [r["artifact"] for r in read_baseline(file, "b")] == ["b"]
    with pytest.raises(InputError, match="no artifact `c`"):
        read_baseline(file, "c")
    file.write_text(file.read_text().replace("snr_db >= 35", "snr_db >= 30"))
    with pytest.raises(InputError, match="digest differs"):
        read_baseline(file)


UNFIT: dict[str, Callable[[Report], Any]] = {
    "failed": lambda c: c.update(verdict="fail", message="bad"),
    "indeterminate": lambda c: c.update(verdict="indeterminate", message="unknown"),
    "not finite": lambda c: c["metrics"].update(finite=False),
    "all zeros": lambda c: c["metrics"].update(cosine=None),
    "against zeros": lambda c: c["metrics"].update(snr_db="-inf"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_degenerate_results_are_refused(name: str, report: Report) -> None:
    with pytest.raises(InputError, match="unet"):
        bless([edited(report, UNFIT[name])], "a reason")


def test_results_without_numbers_or_without_a_reason_are_refused(report: Report) -> None:
    with pytest.raises(InputError, match="reason"):
        bless([report], "  ")
    structure = [c for c in report["checks"] if c["level"] == "structure"]
    with pytest.raises(InputError, match="no outputs were compared"):
        bless([{**report, "checks": structure}], "a reason")
    with pytest.raises(InputError, match="same artifact"):
        bless([report, report], "a reason")
    with pytest.raises(InputError, match="its checks do not"):
        bless([{**report, "verdict": "fail"}], "a reason")
    assert math.isfinite(
        bless([report], "a reason")["reports"][0]["checks"][-1]["metrics"]["nrmse"]
    )


def test_less_evidence_than_before_is_worse(report: Report) -> None:
    def with_evidence(effort: Effort, elsewhere: str | None = None) -> Report:
        size = report["resolution"]
        return {**report, "effort": effort, "evidence": evidence(effort, size, elsewhere)}

    policy, quick, thorough = load_policy(), with_evidence("quick"), with_evidence("thorough")
    once, elsewhere = with_evidence("standard"), with_evidence("standard", "other_1024x1024")
    for old, new in ((once, quick), (thorough, once), (elsewhere, quick), (thorough, elsewhere)):
        worse = diff([old], [new], policy).worse
        places = {change.place.partition(" · ")[2] for change in worse}
        assert places == {f"evidence · {c}" for c in ("unet", "vae_decoder", "vae_encoder")}
        assert diff([new], [old], policy)
    assert diff([once], [elsewhere], policy)  # which one is executed is the run's to choose
    silent = {key: value for key, value in report.items() if key not in ("effort", "evidence")}
    assert diff([silent], [quick], policy)
    assert not diff([quick], [silent], policy)
    assert bless([quick], "right")["reports"][0]["evidence"] == quick["evidence"]
