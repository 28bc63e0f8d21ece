"""Saved results judged again, under another policy; nothing is run and no model is read."""

from __future__ import annotations

from typing import Any

from convert.methods import UNCOMPRESSED
from verify.checks import worst
from verify.gates import parse_gates
from verify.policy import Policy
from verify.saved import Report

PROBLEM = "not finite"


def recheck(report: Report, policy: Policy) -> Report:
    """A report with the verdicts of another policy.

    Where outputs were compared at a level that the policy has gates for, its gates take the place
    of the old ones, except for what compression does, at level compression and to pictures: there
    the recipe's stay, with the policy's beside them. Checks without numbers, and levels without
    gates, keep their verdict. What is not finite fails, whatever was said of it.

    Raises:
        InputError: the policy has gates for a level but none for a component compared at it.
    """
    bits = report.get("bits")
    checks = [_judged(check, policy, bits) for check in report["checks"]]
    verdict = worst(check["verdict"] for check in checks)
    return {**report, "verdict": verdict, "policy": policy.version, "checks": checks}


def _judged(check: Report, policy: Policy, bits: str | None) -> dict[str, Any]:
    metrics, level = check["metrics"], check["level"]
    if metrics is None:
        return check
    if metrics.get("finite") is not True:
        return {**check, "verdict": "fail", "message": check["message"] or PROBLEM}
    component = check["component"]
    recipe = None
    if level == "compression" or (level == "generation" and bits not in (None, UNCOMPRESSED)):
        recipe = parse_gates(check["gate"], level, component)
    if level not in policy.levels and not recipe:
        return check
    judged = policy.judge(
        level, component, metrics, output=check["output"], bits=bits, recipe=recipe or ()
    )
    return {**check, "gate": judged.gate, "verdict": judged.verdict, "message": judged.message}
