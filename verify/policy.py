"""The policy: which measure must reach what, read strictly from a TOML file.

Judging needs only metrics, so saved results can be judged again under another policy.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.components import COMPONENTS
from convert.errors import InputError, nearest
from verify.checks import Verdict
from verify.metrics import Metrics

BUILT_IN = Path(__file__).with_name("policy.toml")
METRICS = ("snr_db", "nrmse", "cosine", "max_abs", "p99_abs", "fp16_error_ratio")
LEVELS = ("conversion",)


@dataclass(frozen=True)
class Gate:
    """One threshold on one measure."""

    level: str
    components: tuple[str, ...]
    metric: str
    at_least: bool  # or else at most
    value: float
    why: str

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:g}"

    def holds(self, value: float) -> bool:
        """Whether a value passes; NaN never does."""
        return value >= self.value if self.at_least else value <= self.value


@dataclass(frozen=True)
class Judgement:
    """What a policy makes of one comparison."""

    gate: str
    verdict: Verdict
    message: str


@dataclass(frozen=True)
class Policy:
    """A versioned set of gates."""

    version: str
    gates: tuple[Gate, ...]

    def judge(
        self, level: str, component: str, metrics: Metrics, fp16_error_ratio: float | None = None
    ) -> Judgement:
        """Judge one output of a component.

        Args:
            fp16_error_ratio: our NRMSE over PyTorch float16's on the same inputs; without it the
                gates on it do not apply and are not named.

        Raises:
            InputError: the policy has no gate that applies.
        """
        gates = [g for g in self.gates if g.level == level and component in g.components]
        if fp16_error_ratio is None:
            gates = [g for g in gates if g.metric != "fp16_error_ratio"]
        if not gates:
            raise InputError(f"the policy has no gate for {component} at level {level}")
        text = " and ".join(map(str, gates))
        if not metrics.finite:
            return Judgement(text, "fail", metrics.problem or "not finite")
        broken = []
        for gate in gates:
            value = fp16_error_ratio
            if value is None or gate.metric != "fp16_error_ratio":
                value = float(getattr(metrics, gate.metric))
            if not gate.holds(value):
                broken.append(f"{gate.metric} is {value:.4g}, {gate} is asked")
        return Judgement(text, "fail" if broken else "pass", "; ".join(broken))


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a TOML file, or the built-in one.

    Raises:
        InputError: no such file, not TOML, or a key or value that is not known.
    """
    path = path or BUILT_IN
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"not readable as TOML: {error}", where=path) from None
    _known(values, ("schema", "version", "gate"), path)
    if values.get("schema") != 1:
        raise InputError(f"`schema` is {values.get('schema')!r}; this tool reads 1", where=path)
    version, gates = values.get("version"), values.get("gate")
    if not isinstance(version, str) or not version:
        raise InputError("`version` must be a text", where=path)
    if not isinstance(gates, list) or not gates:
        raise InputError("there is no [[gate]]", where=path)
    return Policy(version, tuple(_gate(g, f"{path}: gate {n}") for n, g in enumerate(gates, 1)))


def _gate(values: Any, where: str) -> Gate:
    if not isinstance(values, dict):
        raise InputError(f"is {values!r}, not a table", where=where)
    _known(values, ("level", "components", "metric", "at_least", "at_most", "why"), where)
    level = _one_of(values.get("level"), LEVELS, "level", where)
    metric = _one_of(values.get("metric"), METRICS, "metric", where)
    components = values.get("components")
    if not isinstance(components, list) or not components:
        raise InputError("`components` must be a list of names", where=where)
    names = tuple(_one_of(c, tuple(COMPONENTS), "components", where) for c in components)
    bounds = [key for key in ("at_least", "at_most") if key in values]
    if len(bounds) != 1:
        raise InputError("needs exactly one of `at_least` and `at_most`", where=where)
    value = values[bounds[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"`{bounds[0]}` is {value!r}, not a finite number", where=where)
    why = values.get("why")
    if not isinstance(why, str) or not why.strip():
        raise InputError("`why` must say where the number comes from", where=where)
    return Gate(level, names, metric, bounds[0] == "at_least", float(value), why.strip())


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
        f"`{key}` has {value!r}; known are {', '.join(known)}",
        where=where,
        hint=f"Did you mean `{near}`?" if near else None,
    )
