"""The policy: which measure must reach what, and how much worse it may become.

Judging needs only metrics, so saved results can be judged again under another policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.files.cache import key_of
from convert.process.code import code_digest
from verify.judge.gates import RATIO, TENSOR_METRICS, Gate, Judgement, judge
from verify.judge.metrics import Metrics
from verify.judge.policy_file import Tolerance, read_policy_file

BUILT_IN = Path(__file__).with_name("policy.toml")
UNKNOWN_BITS = "a gate is for weights of certain bits, and the bits of these are not known"


@dataclass(frozen=True)
class Policy:
    """A versioned set of gates, and what `diff` tolerates."""

    version: str
    gates: tuple[Gate, ...]
    tolerances: tuple[Tolerance, ...] = ()

    @property
    def levels(self) -> set[str]:
        """The levels that the policy has gates for."""
        return {gate.level for gate in self.gates}

    @property
    def made_by(self) -> dict[str, str]:
        """Digests of what makes a report that this policy judges, as its `code` has them.

        `measured_by` is of the code that its numbers and findings come from; `judged_by` is of the
        gates and of the code that applies them.
        """
        gates = [asdict(gate) for gate in self.gates]
        return {
            "measured_by": code_digest("measure"),
            "judged_by": key_of([code_digest("judge"), self.version, gates]),
        }

    def judge(
        self,
        level: str,
        component: str,
        metrics: Metrics | Mapping[str, Any],
        fp16_error_ratio: float | None = None,
        *,
        output: str | None = None,
        bits: str | None = None,
        recipe: Sequence[Gate] = (),
    ) -> Judgement:
        """Judge one output of a component.

        Args:
            metrics: as measured, or a mapping as a report's JSON has it. A gate on a measure that
                is not there makes the verdict indeterminate, never pass.
            fp16_error_ratio: our NRMSE over PyTorch float16's on the same inputs; without it the
                gates on it do not apply and are not named.
            output: its name, for gates that name theirs.
            bits: of the artifact's weights, for gates that name theirs. A gate for other bits does
                not apply; what is then left without a threshold must be finite.
            recipe: gates beside the policy's, of which those on this output hold. At level
                compression there need not be any at all, because no universal threshold exists.

        Raises:
            InputError: the policy has no gate for it.
        """
        values = _values(metrics, fp16_error_ratio)
        gates = [g for g in (*recipe, *self.gates) if g.judges(level, component, output)]
        if RATIO in values and values[RATIO] is None:
            gates = [g for g in gates if g.metric != RATIO]
        if not gates and level != "compression":
            what = f"{output} of {component}" if output else component
            raise InputError(f"the policy has no gate for {what} at level {level}")
        problem = UNKNOWN_BITS if bits is None and any(g.bits for g in gates) else ""
        return judge([g for g in gates if not g.bits or bits in g.bits], values, problem)


def _values(metrics: Metrics | Mapping[str, Any], ratio: float | None) -> Mapping[str, Any]:
    if isinstance(metrics, Mapping):
        return metrics if ratio is None else {**metrics, RATIO: ratio}
    names = (*TENSOR_METRICS, "finite", "problem")
    return {**{name: getattr(metrics, name) for name in names}, RATIO: ratio}


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a TOML file, or the built-in one. Raises as `read_policy_file` does."""
    file = read_policy_file(path or BUILT_IN)
    return Policy(file.version, tuple(table.gate(file.gate) for table in file.gate), file.tolerance)
