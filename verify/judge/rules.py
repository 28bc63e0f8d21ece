"""What the numbers of one artifact are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verify.judge.gates import Gate, Judgement
from verify.judge.metrics import Metrics
from verify.judge.policy import Policy


@dataclass(frozen=True)
class Rules:
    """A policy, and the gates that a recipe has beside it for weights of certain bits."""

    policy: Policy
    bits: str | None = None  # of the artifact's weights; None if they are not known
    recipe: tuple[Gate, ...] = ()

    def judge(
        self, level: str, component: str, metrics: Metrics | Mapping[str, Any], *, output: str
    ) -> Judgement:
        """Judge one output of a component; see `Policy.judge`."""
        return self.policy.judge(
            level, component, metrics, output=output, bits=self.bits, recipe=self.recipe
        )
