"""The policy: which measure must reach what, read strictly from a TOML file.

Judging needs only metrics, so saved results can be judged again under another policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.cache import key_of
from convert.code import code_digest
from convert.errors import InputError, nearest
from convert.files.json_files import read_toml, shown
from convert.values import parse_bits
from verify.judge.gates import (
    HIGHER_IS_BETTER,
    IMAGE_METRICS,
    LEVELS,
    METRICS,
    RATIO,
    TENSOR_METRICS,
    Gate,
    Judgement,
    judge,
)
from verify.judge.metrics import Metrics

BUILT_IN = Path(__file__).with_name("policy.toml")
LARGEST = 1e300  # of a bound; an integer beyond it is no float
UNKNOWN_BITS = "a gate is for weights of certain bits, and the bits of these are not known"


@dataclass(frozen=True)
class Tolerance:
    """How much worse than its baseline a measure may be at some levels.

    `limit` is a difference where more is better, and a factor where it is an error. Outputs whose
    SNR is at least `up_to_snr_db` in both are as good as each other.
    """

    levels: tuple[str, ...]
    metric: str
    limit: float
    why: str
    up_to_snr_db: float = math.inf

    def worse(self, old: float, new: float) -> bool:
        """Whether `new` is worse than `old` by more than is tolerated."""
        if self.metric in HIGHER_IS_BETTER:
            return not new >= old - self.limit
        return not new <= old * self.limit

    def better(self, old: float, new: float) -> bool:
        """Whether `new` is as much better."""
        return self.worse(new, old)


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


# ---- the file ----


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a TOML file, or the built-in one.

    Raises:
        InputError: no such file, not TOML, or a key or value that is not known.
    """
    path = path or BUILT_IN
    values = read_toml(path)
    _known(values, ("schema", "version", "gate", "tolerance"), path)
    if values.get("schema") != 1:
        raise InputError(
            f"`schema` is {shown(values.get('schema'))}; this tool reads 1", where=path
        )
    version, gates, tolerances = (values.get(key) for key in ("version", "gate", "tolerance"))
    if not isinstance(version, str) or not version:
        raise InputError("`version` must be a text", where=path)
    if not isinstance(gates, list) or not gates:
        raise InputError("there is no [[gate]]", where=path)
    if not isinstance(tolerances, list | None):
        raise InputError("`tolerance` must be written [[tolerance]]", where=path)
    return Policy(
        version,
        tuple(_gate(g, f"{path}: gate {n}") for n, g in enumerate(gates, 1)),
        tuple(_tolerance(t, f"{path}: tolerance {n}") for n, t in enumerate(tolerances or (), 1)),
    )


def _gate(values: Any, where: str) -> Gate:
    keys = ("level", "components", "outputs", "bits", "metric", "at_least", "at_most", "why")
    _table(values, keys, where)
    level = _one_of(values.get("level"), tuple(LEVELS), "level", where)
    metric = _metric(values, (level,), where)
    outputs = _names(values, "outputs", None, where) if "outputs" in values else ()
    if metric in IMAGE_METRICS and outputs != ("image",):
        raise InputError(f'`{metric}` is of images: it needs `outputs = ["image"]`', where=where)
    bits = _names(values, "bits", None, where) if "bits" in values else ()
    if bits and level == "conversion":
        raise InputError("compression is not charged to conversion: no `bits` here", where=where)
    for name in bits:
        try:
            parse_bits(name)
        except InputError as error:
            raise InputError(f"`bits`: {error.problem}", where=where) from None
    bound = _bound(values, ("at_least", "at_most"), where)
    return Gate(
        level,
        _names(values, "components", LEVELS[level], where),
        metric,
        bound == "at_least",
        _finite(values, bound, where),
        _why(values, where),
        outputs,
        bits,
    )


def _tolerance(values: Any, where: str) -> Tolerance:
    _table(values, ("levels", "metric", "max_drop", "max_factor", "up_to_snr_db", "why"), where)
    levels = _names(values, "levels", tuple(LEVELS), where)
    metric = _metric(values, levels, where)
    bound = _bound(values, ("max_drop", "max_factor"), where)
    wanted, least = ("max_drop", 0.0) if metric in HIGHER_IS_BETTER else ("max_factor", 1.0)
    limit = _finite(values, bound, where)
    if bound != wanted or limit < least:
        raise InputError(f"`{metric}` needs `{wanted}`, at least {least:g}", where=where)
    up_to = _finite(values, "up_to_snr_db", where) if "up_to_snr_db" in values else math.inf
    return Tolerance(levels, metric, limit, _why(values, where), up_to)


def _metric(values: dict[str, Any], levels: tuple[str, ...], where: str) -> str:
    metric = _one_of(values.get("metric"), METRICS, "metric", where)
    only = {RATIO: "conversion", **dict.fromkeys(IMAGE_METRICS, "generation")}.get(metric)
    if only and levels != (only,):
        raise InputError(f"`{metric}` is measured at level {only} only", where=where)
    return metric


def _bound(values: dict[str, Any], keys: tuple[str, str], where: str) -> str:
    found = [key for key in keys if key in values]
    if len(found) != 1:
        raise InputError(f"needs exactly one of `{keys[0]}` and `{keys[1]}`", where=where)
    return found[0]


def _finite(values: dict[str, Any], key: str, where: str) -> float:
    value = values[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST <= value <= LARGEST:
        raise InputError(f"`{key}` is {shown(value)}, not a finite number", where=where)
    return float(value)


def _why(values: dict[str, Any], where: str) -> str:
    why = values.get("why")
    if not isinstance(why, str) or not why.strip():
        raise InputError("`why` must say where the number comes from", where=where)
    return why.strip()


def _names(
    values: dict[str, Any], key: str, known: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    names = values.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"`{key}` must be a list of names", where=where)
    return tuple(n if known is None else _one_of(n, known, key, where) for n in names)


def _table(values: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"is {shown(values)}, not a table", where=where)
    _known(values, keys, where)


def _known(values: dict[str, Any], keys: tuple[str, ...], where: object) -> None:
    for key in values:
        if key not in keys:
            near = nearest(key, keys)
            raise InputError(
                f"unknown key `{key}`; there are {', '.join(keys)}",
                where=where,
                hint=f"Did you mean `{near}`?" if near else None,
            )


def _one_of(value: Any, known: tuple[str, ...], key: str, where: str) -> str:
    if value in known:
        return str(value)
    near = nearest(str(value), known)
    raise InputError(
        f"`{key}` has {shown(value)}; known are {', '.join(known)}",
        where=where,
        hint=f"Did you mean `{near}`?" if near else None,
    )
