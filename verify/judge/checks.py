"""The results of a verification: one `Check` per thing looked at, and the verdict of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convert.errors import CannotExecute
from convert.values import Effort, Level, Resolution, Verdict
from verify.judge.image_metrics import ImageMetrics
from verify.judge.metrics import Metrics

if TYPE_CHECKING:
    from verify.levels.generation import Generation

PIPELINE = "pipeline"  # the component that levels generation and sanity are of
PICTURE_LEVELS: tuple[Level, ...] = ("generation", "sanity")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    level: Level
    component: str  # of COMPONENTS, "artifact" or PIPELINE
    case: str  # what of it, or which run: "inputs", "t=999 cond"
    gate: str  # what is asked, in words or as `snr_db >= 35`
    verdict: Verdict
    output: str | None = None  # of the component, where outputs are compared
    metrics: Metrics | None = None
    fp16: Metrics | None = None  # of PyTorch float16 on the same inputs: the noise floor
    fp16_error_ratio: float | None = None  # our error over the noise floor
    similarity: ImageMetrics | None = None  # of pictures
    message: str = ""  # what was found; never empty unless the verdict is pass
    size: Resolution | None = None  # at which it was executed, where that is not the package's own


def passed(level: Level, component: str, case: str, gate: str, message: str = "") -> Check:
    """A check that passed."""
    return Check(level, component, case, gate, "pass", message=message)


def failed(level: Level, component: str, case: str, gate: str, message: str) -> Check:
    """A check that failed, and why."""
    return Check(level, component, case, gate, "fail", message=message)


def exact(
    level: Level, component: str, case: str, gate: str, problem: str, found: str = ""
) -> Check:
    """A check that has failed if there is a problem; `found` is said of one that passed."""
    if problem:
        return failed(level, component, case, gate, problem)
    return passed(level, component, case, gate, found)


@dataclass(frozen=True)
class Results:
    """All checks of one artifact or package; true if it passed.

    Raises:
        CannotExecute: there are no checks; nothing looked at is never a pass.
    """

    artifact: str
    source: str
    runtime: str
    scope: str  # in one line, what these checks do not prove
    resolution: Resolution | None
    policy: str  # version of the policy
    checks: tuple[Check, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)  # what made it: `Policy.made_by`
    attention: str | None = None  # as the manifest claims it; None if nobody knows
    bits: str | None = None  # of the weights, as recipes say it; None if nobody knows
    compressed: tuple[str, ...] = ()  # the components some of whose weights are compressed
    effort: Effort | None = None  # as it was asked for; None where all was done that was asked
    # component → what was done and found right, in the words of `verify.reports.evidence`
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    generations: tuple[Generation, ...] = ()  # the pictures of levels generation and sanity
    # component → the ops that rounding costs most (`verify.bisect.ops.worst_ops_of`)
    worst_ops: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.checks:
            raise CannotExecute("nothing was checked", where=self.artifact)

    @property
    def verdict(self) -> Verdict:
        """`fail` if any check failed, else `indeterminate` if any is, else `pass`."""
        return worst(check.verdict for check in self.checks)

    def __bool__(self) -> bool:
        return self.verdict == "pass"

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    def exit_code(self, *, strict: bool = False) -> int:
        """0 pass, 1 fail, 3 indeterminate (1 if `strict`)."""
        return exit_code(self.verdict, strict=strict)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of several; of none it is indeterminate."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} else "indeterminate"


def exit_code(verdict: Verdict, *, strict: bool = False) -> int:
    """0 pass, 1 fail, 3 indeterminate (1 if `strict`)."""
    code = {"pass": 0, "fail": 1, "indeterminate": 3}[verdict]
    return 1 if strict and code == 3 else code


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    import importlib.metadata

    from convert import __version__

    names = ("coremltools", "diffusers", "numpy", "torch", "transformers")
    return {"sdxl-coreml": __version__, **{n: importlib.metadata.version(n) for n in names}}
