"""Saved results judged again, under another policy; nothing is run and no model is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convert.weights.compress import UNCOMPRESSED
from verify.judge.checks import worst
from verify.judge.gates import Gate, parse_gates
from verify.judge.policy import Policy
from verify.reports.figures import figures_json
from verify.reports.saved import Report

PROBLEM = "not finite"


def recheck(report: Report, policy: Policy, recipe: Sequence[Gate] | None = None) -> Report:
    """A report with the verdicts of another policy.

    Where outputs were compared at a level that the policy has gates for, its gates take the place
    of the old ones, except for what compression does, at level compression and to pictures: there
    the recipe's stay, with the policy's beside them. Checks without numbers, and levels without
    gates, keep their verdict. What is not finite fails, whatever was said of it.

    Args:
        recipe: the recipe's gates. With them, all numbers are judged as `verify` would judge them
            now; if None, what the checks say of gates is all that is known.

    Raises:
        InputError: the policy has gates for a level but none for a component compared at it.
    """
    bits = report.get("bits")
    checks = [_judged(check, policy, bits, recipe) for check in report["checks"]]
    verdict = worst(check["verdict"] for check in checks)
    again = {**report, "verdict": verdict, "policy": policy.version, "checks": checks}
    if "code" in report:  # reports of 0.1.0 do not say what made them
        again["code"] = {**report["code"], "judged_by": policy.made_by["judged_by"]}
    return again | figures_json(again)


def _judged(
    check: Report, policy: Policy, bits: str | None, recipe: Sequence[Gate] | None
) -> dict[str, Any]:
    metrics, level = check["metrics"], check["level"]
    if metrics is None:
        return check
    component = check["component"]
    if recipe is None:
        if metrics.get("finite") is not True:
            return {**check, "verdict": "fail", "message": check["message"] or PROBLEM}
        if level == "compression" or (level == "generation" and bits not in (None, UNCOMPRESSED)):
            recipe = parse_gates(check["gate"], level, component)
        if level not in policy.levels and not recipe:
            return check
    numbers = {**metrics, "problem": check["message"]}
    judged = policy.judge(
        level, component, numbers, output=check["output"], bits=bits, recipe=recipe or ()
    )
    return {**check, "gate": judged.gate, "verdict": judged.verdict, "message": judged.message}
