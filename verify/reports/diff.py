"""Two results compared: what got worse, and what is no longer asked or no longer looked at.

Worse are: a gate that was loosened or vanished, a check, component, level or artifact that
vanished, a model that is no longer executed as near to its own size, a verdict that fell, a measure
that vanished, and a number that is worse by more than the policy's tolerance. What got better, or
is new, is reported and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from convert.errors import InputError
from convert.values import Verdict
from verify.judge.gates import METRICS, number, parse_gates
from verify.judge.policy import Policy
from verify.judge.policy_file import Tolerance
from verify.reports.evidence import REACHES, how_verified
from verify.reports.figures import WORST_WEIGHT, case_text, kind, place
from verify.reports.saved import Report

ChangeKind = Literal["gate", "vanished", "verdict", "number", "new"]
RANK: dict[Verdict, int] = {"pass": 0, "indeterminate": 1, "fail": 2}


@dataclass(frozen=True)
class Change:
    """One difference, `worse` or not."""

    kind: ChangeKind
    worse: bool
    place: str  # artifact · level · component · case · output
    old: str
    new: str


@dataclass(frozen=True)
class Diff:
    """What two results differ in; true if nothing is worse."""

    changes: tuple[Change, ...]
    compared: int  # checks that both have

    def __bool__(self) -> bool:
        return not self.worse

    @property
    def worse(self) -> tuple[Change, ...]:
        """The changes that fail."""
        return tuple(change for change in self.changes if change.worse)

    @property
    def verdict(self) -> Verdict:
        """`fail` if anything is worse, else `pass`."""
        return "fail" if self.worse else "pass"

    def to_json(self) -> dict[str, Any]:
        """The document of `diff --json`: schema 1, the verdict, and each change."""
        return {
            "schema": 1,
            "verdict": self.verdict,
            "compared": self.compared,
            "changes": [asdict(change) for change in self.changes],
        }


def diff(old: Sequence[Report], new: Sequence[Report], policy: Policy) -> Diff:
    """Compare new results with old ones, artifact by artifact.

    Args:
        old, new: of `verify.reports.saved.read_reports`. Where both are of a single artifact they
            are compared whatever it is called.
        policy: whose tolerances hold.

    Raises:
        InputError: the policy has no tolerances, or the two have no check in common.
    """
    if not policy.tolerances:
        raise InputError(
            f"policy {policy.version} has no [[tolerance]]",
            hint="How much worse a number may be than its baseline is the policy's to say.",
        )
    before, after = ({r["artifact"]: r for r in reports} for reports in (old, new))
    if len(before) == len(after) == 1:
        after = dict(zip(before, after.values(), strict=True))
    changes: list[Change] = []
    compared = 0
    for name, report in before.items():
        if name not in after:
            changes.append(Change("vanished", True, name, "verified", "not there"))
            continue
        compared += len(_checks(report).keys() & _checks(after[name]).keys())
        changes += _reports(name, report, after[name], policy)
    for name in after.keys() - before.keys():
        worse = after[name]["verdict"] != "pass"
        changes.append(Change("new", worse, name, "not there", after[name]["verdict"]))
    if not compared:
        raise InputError("the two results have no check in common: nothing was compared")
    return Diff(tuple(changes), compared)


def _reports(name: str, old: Report, new: Report, policy: Policy) -> Iterator[Change]:
    for fact in ("resolution", "bits"):
        if old.get(fact) != new.get(fact):
            yield Change(
                "vanished", True, name, f"{fact} {old.get(fact)}", f"{fact} {new.get(fact)}"
            )
    yield from _evidence(name, old, new)
    before, after = _checks(old), _checks(new)
    yield from _vanished(name, before, after)
    for key, check in after.items():
        if key not in before and check["verdict"] != "pass":
            yield Change("new", True, place(check, name), "not there", _said(check))
        elif key not in before:
            yield Change("new", False, place(check, name), "not there", check["verdict"])
        else:
            yield from _check(place(check, name), before[key], check, policy)


def _evidence(name: str, old: Report, new: Report) -> Iterator[Change]:
    """Components that were executed nearer to their own size than they are now.

    Of one step it makes no difference on which artifact: that is the run's to choose.
    """
    if not old.get("evidence"):
        return
    before, after = how_verified(old), how_verified(new)
    for component in before.words:
        had, has = before.reach_of(component), after.reach_of(component)
        both = {had, has}
        if REACHES.index(has) < REACHES.index(had) and both != {"one step", "one step elsewhere"}:
            yield Change("vanished", True, f"{name} · evidence · {component}", had, has)


Key = tuple[str, str, str, str, int]


def _checks(report: Report) -> dict[Key, Report]:
    """The checks by what they are of."""
    found: dict[Key, Report] = {}
    for check in report["checks"]:
        case, output = case_text(check), check["output"] or ""
        if case.startswith(WORST_WEIGHT):
            output = ""  # which weight that is may change
        again = 0
        while (key := (check["level"], check["component"], case, output, again)) in found:
            again += 1
        found[key] = check
    return found


def _vanished(
    name: str, before: Mapping[Key, Report], after: Mapping[Key, Report]
) -> Iterator[Change]:
    """Whole levels and components are said once."""
    gone = [key for key in before if key not in after]
    levels = {key[0] for key in after}
    components = {key[:2] for key in after}
    said = set()
    for key in gone:
        level, component, *_ = key
        if level not in levels:
            where = f"{name} · {level}"
        elif (level, component) not in components:
            where = f"{name} · {level} · {component}"
        else:
            where = place(before[key], name)
        if where not in said:
            said.add(where)
            yield Change("vanished", True, where, "checked", "not checked")


def _check(where: str, old: Report, new: Report, policy: Policy) -> Iterator[Change]:
    yield from _gates(where, old, new)
    if old["verdict"] != new["verdict"]:
        worse = RANK[new["verdict"]] > RANK[old["verdict"]]
        yield Change("verdict", worse, where, _said(old), _said(new))
    if old["metrics"] is not None:
        yield from _numbers(where, old, new, policy)


def _gates(where: str, old: Report, new: Report) -> Iterator[Change]:
    """Loosened, vanished and reworded gates: only a person can tell that another text asks as much,
    and blesses the results."""
    if old["gate"] == new["gate"]:
        return
    before, after = (parse_gates(c["gate"], c["level"], c["component"]) for c in (old, new))
    if before is None or after is None:
        yield Change("gate", True, where, old["gate"], new["gate"])
        return
    for gate in before:
        same = [g for g in after if (g.metric, g.at_least) == (gate.metric, gate.at_least)]
        if all(g.loosened_from(gate) for g in same):
            yield Change("gate", True, where, str(gate), " and ".join(map(str, same)) or "no gate")
    kept = {str(gate) for gate in before}
    for gate in after:
        looser = [g for g in before if g.metric == gate.metric and gate.loosened_from(g)]
        if str(gate) not in kept and not looser:
            yield Change("gate", False, where, old["gate"], str(gate))


def _numbers(where: str, old: Report, new: Report, policy: Policy) -> Iterator[Change]:
    if new["metrics"] is None:
        yield Change("vanished", True, where, "measured", "not measured")
        return
    before, after = old["metrics"], new["metrics"]
    both_snr = min(_snr(before), _snr(after))
    of = kind(old)  # program, checkpoint, weights: an SNR alone says little
    tolerances = {t.metric: t for t in policy.tolerances if old["level"] in t.levels}
    for metric in METRICS:
        had, has = number(before, metric), number(after, metric)
        if had is None:
            continue
        if has is None:
            yield Change("vanished", True, where, f"{of} {metric} {had:.4g}", "not measured")
            continue
        tolerance: Tolerance | None = tolerances.get(metric)
        if tolerance is None or both_snr >= tolerance.up_to_snr_db:
            continue
        if tolerance.worse(had, has) or tolerance.better(had, has):
            worse = tolerance.worse(had, has)
            was, now = (f"{of} {metric} {value:.4g}" for value in (had, has))
            yield Change("number", worse, where, was, now)


def _snr(metrics: Mapping[str, Any]) -> float:
    """For where both are as good as can be; NaN is as bad as can be."""
    value = number(metrics, "snr_db")
    return value if value is not None and not math.isnan(value) else -math.inf


def _said(check: Report) -> str:
    return f"{check['verdict']}: {check['message']}" if check["message"] else str(check["verdict"])
