"""A card says of every file how it was verified, and at no effort more than that."""

from __future__ import annotations

from typing import Any

import pytest

from convert.values import Effort
from release.card.card import compose
from release.card.verified import evidence_cell, sizes_note, verified_section
from release.pack.pack import read_release
from tests.support.evidence import artifact, matrix, report

Archive = dict[str, Any]
EXECUTED = "every model was executed at its own size"


def archive(report: dict[str, Any], runtime: str = "torch") -> Archive:
    keys = ("artifact", "resolution", "verdict", "effort", "evidence")
    own = {key: report[key] for key in keys if key in report}
    return {
        "archive": f"{report['artifact']}.zip",
        "manifest": {**own, "verification": {"runtime": runtime}},
    }


def section(effort: Effort, **more: Any) -> str:
    return "\n".join(verified_section([archive(r) for r in matrix(effort=effort, **more)]))


def test_standard_effort_says_which_files_were_executed_and_that_no_other_was() -> None:
    text = section("standard", bits=("8", "6"))
    first = artifact("original", "8", "1024x1024")
    assert "Checked at standard effort, op by op with PyTorch, without Core ML:" in text
    assert f"- **one step** (`{first}.zip`, " in text
    assert "- **one step elsewhere** (34 files): " in text
    assert f"- Executed once at full size: `{first}` (1024 × 1024), " in text
    assert "- Not done: executing every file at its own size and several timesteps." in text
    assert EXECUTED not in text
    assert f"In full, of `{artifact('original', '6', '1024x1024')}.zip`: Checked at" in text


def test_quick_effort_says_that_nothing_was_executed_at_full_size() -> None:
    text = section("quick", bits=("6",))
    assert "- **small size** (all files): " in text
    assert "nothing was executed at its own" in text
    assert "Executed once" not in text
    assert "- Not done" in text
    assert EXECUTED not in text


def test_thorough_effort_says_that_every_file_was_executed() -> None:
    text = section("thorough", bits=("6",))
    start = "- **executed** (all files): every stored weight and every operation was compared; "
    assert start + EXECUTED in text
    assert "Not done" not in text
    assert not sizes_note([archive(r) for r in matrix(effort="thorough")])


def test_files_verified_differently_are_told_apart() -> None:
    found = [archive(report(effort="thorough")), archive(report(size="64x96", effort="quick"))]
    text = "\n".join(verified_section(found))
    assert "Checked at thorough and quick effort" in text
    assert f"**executed** (`{found[0]['archive']}`)" in text
    assert f"**small size** (`{found[1]['archive']}`)" in text
    assert "- Not done" in text
    assert sizes_note(found).startswith(" But for files whose evidence is `executed`, those of")


@pytest.mark.parametrize(
    ("verdict", "says"),
    [("pass", "one step"), ("fail", "one step; not passed"), (None, "not verified")],
)
def test_a_files_row_says_its_verdict_where_it_did_not_pass(verdict: Any, says: str) -> None:
    assert evidence_cell(archive({**report(), "verdict": verdict})) == says


def test_what_was_not_verified_or_does_not_say_how_has_no_section() -> None:
    assert not verified_section([archive({**report(), "verdict": None})])
    old = report()
    del old["effort"], old["evidence"]
    assert not verified_section([archive(old)])
    mixed = "\n".join(verified_section([archive(old), archive(report(effort="quick"))]))
    assert "**not said** (`" in mixed


def test_core_ml_is_named_where_it_did_it() -> None:
    text = "\n".join(verified_section([archive(report(), "coreml")]))
    assert "Checked at standard effort, with Core ML on a Mac:" in text


def test_a_whole_card_has_the_column_and_the_section(base_release: Any) -> None:
    manifest = read_release(base_release)
    plain = compose(manifest)
    assert "Evidence" not in plain
    assert "## How it was verified" not in plain
    assert "Verified op by op (torch" in plain
    own = manifest["archives"][0]["manifest"]
    told = report(size=own["resolution"], elsewhere="other_one_1024x1024")
    own |= {key: told[key] for key in ("effort", "evidence")}
    card = compose(manifest)
    assert "| SNR, checkpoint | Evidence |" in card
    row = next(line for line in card.splitlines() if line.startswith("| [base"))
    assert row.endswith(" | one step elsewhere |")
    assert (
        r"another file (other\_one\_1024x1024, 1024 × 1024) were executed and compared, not on"
        in card
    )
    assert "Those of UNet and VAE were measured at 320 × 448 with the same weights" in card
    assert "Verified op by op" not in card
