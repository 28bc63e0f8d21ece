"""What a run of coremltools' tests came to, in words; and whether that is as it should be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"
VERDICTS = ("right", "wrong", "crash", "silent", "refused")
BAD = ("wrong", "crash", "silent")


def listed() -> set[str]:
    """The operations of README's list of what is not run."""
    text = README.read_text("utf-8")
    table = text.split("<!-- refused -->")[1].split("<!-- /refused -->")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@dataclass
class Kept:
    """What is kept of a run.

    Attributes:
        collected: how many tests there are.
        tests: by name: pytest's outcome, the last of its text, the outcomes of its programs.
        planted: by fault: whether it was seen, each time that it was planted.
    """

    collected: int = 0
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    planted: dict[str, list[bool]] = field(default_factory=dict)


def joined(parts: Sequence[Kept]) -> Kept:
    """What several processes have run, as one."""
    whole = Kept(parts[0].collected)
    for part in parts:
        whole.tests.update(part.tests)
        for name, seen in part.planted.items():
            whole.planted.setdefault(name, []).extend(seen)
    return whole


def controls_are_seen(kept: Kept) -> bool:
    """Whether faults were planted, of more than two kinds, and all of them seen."""
    planted = [seen for seen in kept.planted.values() if seen]
    return len(planted) > 2 and all(all(seen) for seen in planted)


@dataclass
class Summary:
    """A run's results, counted.

    Attributes:
        tests: how many tests there are, and how many were run.
        left: of those, by why they gave no program: `no program`, `left out`, `failed`.
        cases: tests by the worst of their programs' verdicts.
        programs: by verdict.
        refused: tests by the op that they are refused for; `?` for one that README does not list.
        problems: test and message of what must not be.
        error: the largest of right programs.
    """

    tests: tuple[int, int]
    left: Counter[str]
    cases: Counter[str]
    programs: Counter[str]
    refused: Counter[str]
    problems: list[str]
    error: float

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong, and README says what is refused."""
        return bool(self.cases["right"]) and not self.problems


def summary(kept: Kept) -> Summary:
    """Count what was kept."""
    run = (kept.collected, len(kept.tests))
    found = Summary(run, Counter(), Counter(), Counter(), Counter(), [], 0.0)
    known = listed()
    for test, result in kept.tests.items():
        programs = result["programs"]
        if not programs:
            kinds = {"passed": "no program", "skipped": "left out", "failed": "failed"}
            found.left[kinds[result["outcome"]]] += 1
            if result["outcome"] == "failed":
                found.problems.append(f"{test}: {result['text']}")
            continue
        found.programs.update(program["verdict"] for program in programs)
        worst = max(programs, key=lambda program: _RANK[program["verdict"]])
        found.cases[worst["verdict"]] += 1
        if worst["verdict"] in BAD:
            found.problems.append(f"{test}: {worst['verdict']}: {worst['message']}")
        elif worst["verdict"] == "refused":
            op = next(_named(worst["message"], known), "?")
            found.refused[op] += 1
            if op == "?":
                found.problems.append(f"{test}: refused, not in README: {worst['message']}")
        else:
            found.error = max(found.error, worst["error"])
    return found


_RANK = {v: rank for rank, v in enumerate(("right", "refused", "silent", "wrong", "crash"))}


def _named(message: str, ops: set[str]) -> Iterator[str]:
    """Those of some operations that a message names."""
    return (word for word in re.findall(r"\w+", message) if word in ops)


def lines(found: Summary, kept: Kept) -> Iterator[str]:
    """The report, for people."""
    collected, run = found.tests
    yield f"{run:,} of {collected:,} tests"
    yield "".join(f" · {count:,} {why}" for why, count in sorted(found.left.items())).removeprefix(
        " · "
    )
    for name, counts in (("tests", found.cases), ("programs", found.programs)):
        yield f"{counts.total():,} {name}: " + ", ".join(f"{counts[v]:,} {v}" for v in VERDICTS)
    yield f"largest error of what is right: {found.error:.2g} of the largest value"
    yield "refused: " + ", ".join(f"{op} {count}" for op, count in found.refused.most_common())
    for name, seen in kept.planted.items():
        yield f"planted {len(seen)} times, seen {sum(seen)}: {name}"
    yield from found.problems
