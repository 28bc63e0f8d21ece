"""Does verification catch what is planted, and pass what is sound? A table of many of both.

    python -m tests.support.planted --plantings 200 --sound 200 --seed 1

Each fault is planted into an artifact of a tiny checkpoint, at a size that is not executed, and the
manifest's digests are made anew, so that nothing but the levels can notice. Ends with 1 if a fault
was missed, not named, or a sound artifact did not pass. With `--effort standard` what is to be
executed at that effort is, too, which takes ten times as long.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.plantings import (
    Garden,
    Planting,
    Verdict,
    every_planting,
    judged,
    names_all,
    table,
    without_compiling,
)
from tests.support.sound import sound_artifacts

# Among chunks of queries the one beside it may be named, which it is no longer like.
LOOSELY_NAMED = ("input_of_equal_type",)


def plant_all(
    garden: Garden, plantings: Iterable[Planting], count: int, effort: str = "nothing"
) -> tuple[dict[Planting, Verdict], list[str]]:
    """The verdicts of as many plantings, and what is wrong with them."""
    rows: dict[Planting, Verdict] = {}
    wrong = []
    for planting in plantings:
        if len(rows) == count:
            break
        spoilt = garden.spoilt(planting)
        if spoilt is None and planting.compiled:
            planting = without_compiling(planting)
            spoilt = garden.spoilt(planting)
        if spoilt is None:
            continue
        artifact, names = spoilt
        verdict = rows[planting] = judged(artifact, garden.checkpoint, effort)
        if verdict.verdict != "fail":
            wrong.append(f"MISSED {planting.fault} in {planting}: {verdict}")
        elif not names_all(verdict, planting, () if planting.fault in LOOSELY_NAMED else names):
            wrong.append(f"NOT NAMED {planting.fault} {names} in {planting}: {verdict.text}")
    return rows, wrong


def sound_all(
    folder: Path, seed: int, count: int, effort: str = "nothing"
) -> tuple[int, list[str]]:
    """How many sound artifacts were looked at, and what was said against them."""
    wrong, number = [], 0
    for label, artifact, checkpoint in islice(sound_artifacts(folder, seed), count):
        number += 1
        verdict = judged(artifact, checkpoint, effort)
        if verdict.verdict != "pass":
            wrong.append(f"FALSE ALARM {label}: {verdict}")
    return number, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plantings", type=int, default=200)
    parser.add_argument("--sound", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--effort", default="nothing", choices=("nothing", "quick", "standard"))
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    start = time.monotonic()
    with TemporaryDirectory(prefix="planted-") as name:
        folder = Path(name)
        rows: dict[Planting, Verdict] = {}
        wrong: list[str] = []
        if asked.plantings:
            garden = Garden(folder / "garden")
            rows, wrong = plant_all(
                garden, every_planting(asked.seed), asked.plantings, asked.effort
            )
            print("\n".join(table(rows)))
        count, alarms = sound_all(folder / "sound", asked.seed, asked.sound, asked.effort)
    print("\n".join([*wrong, *alarms]))
    missed = sum(v.verdict != "fail" for v in rows.values())
    print(
        f"seed {asked.seed}: {len(rows)} plantings of {len({p.fault for p in rows})} faults, "
        f"{missed} missed, {len(wrong) - missed} not named; {count} sound artifacts, "
        f"{len(alarms)} false alarms; {time.monotonic() - start:.0f} s"
    )
    return 1 if wrong or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
