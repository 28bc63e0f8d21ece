"""A policy's TOML: the tables, and what is wrong with a bad one."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from convert.errors import InputError
from convert.files.json_files import read_toml, shown
from convert.recipe.errors import not_allowed, refusal, refused
from convert.recipe.fields import BitsText, ManyOf, Text
from convert.recipe.section import Section
from verify.judge.gates import (
    HIGHER_IS_BETTER,
    IMAGE_METRICS,
    LEVELS,
    RATIO,
    Gate,
    JudgedLevel,
    Metric,
)

T = TypeVar("T")

LARGEST = 1e300  # of a bound


def _tables(value: object, info: ValidationInfo) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise refusal(f"must be written [[{info.field_name}]], once for each")


def _not_blank(why: str) -> str:
    if not why.strip():
        raise refusal("must say where the number comes from")
    return why.strip()


Tables = Annotated[tuple[T, ...], BeforeValidator(_tables)]
Why = Annotated[str, AfterValidator(_not_blank)]
Bound = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]  # an integer beyond it is no float
EXAMPLE = "At 28 dB the mean error is 4 % of the range."


class GateTable(Section):
    """A [[gate]]; without `components` it is on all that no other on its measure names."""

    level: JudgedLevel = Field(examples=["conversion"])
    components: ManyOf[str] | None = None
    outputs: ManyOf[Text] | None = None
    bits: ManyOf[BitsText] | None = None
    metric: Metric = Field(examples=["snr_db"])
    at_least: Bound | None = None
    at_most: Bound | None = None
    why: Why = Field(examples=[EXAMPLE])

    @model_validator(mode="after")
    def _applies(self) -> Self:
        _require_one_of(at_least=self.at_least, at_most=self.at_most)
        judged = LEVELS[self.level]
        for index, name in enumerate(self.components or ()):
            if name not in judged:
                raise refusal(not_allowed(name, judged), at=f".components[{index}]")
        _require_measured(self.metric, (self.level,))
        if self.metric in IMAGE_METRICS and self.outputs != ("image",):
            raise refusal(f'`{self.metric}` is of images: it needs outputs = ["image"]')
        if self.bits and self.level == "conversion":
            raise refusal("compression is not charged to conversion", at=".bits")
        return self

    def gate(self, others: Collection[GateTable]) -> Gate:
        """The gate that the table describes, beside others of its policy."""
        named = {
            name
            for other in others
            if (other.level, other.metric) == (self.level, self.metric)
            for name in other.components or ()
        }
        rest = tuple(name for name in LEVELS[self.level] if name not in named)
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return Gate(
            self.level,
            self.components or rest,
            self.metric,
            self.at_least is not None,
            bound,
            self.why,
            self.outputs or (),
            self.bits or (),
        )


class Tolerance(Section):
    """A [[tolerance]]: how much worse than its baseline a measure may be at some levels.

    It is a difference where more is better, and a factor where the measure is an error. Outputs
    whose SNR is at least `up_to_snr_db` in both are as good as each other.
    """

    levels: ManyOf[JudgedLevel] = Field(examples=[["conversion"]])
    metric: Metric = Field(examples=["snr_db"])
    max_drop: Annotated[Bound, Field(ge=0)] | None = None
    max_factor: Annotated[Bound, Field(ge=1)] | None = None
    up_to_snr_db: Bound = Field(default=math.inf, validate_default=False)
    why: Why = Field(examples=[EXAMPLE])

    @model_validator(mode="after")
    def _applies(self) -> Self:
        _require_one_of(max_drop=self.max_drop, max_factor=self.max_factor)
        _require_measured(self.metric, self.levels)
        wanted = "max_drop" if self.metric in HIGHER_IS_BETTER else "max_factor"
        if getattr(self, wanted) is None:
            raise refusal(f"`{self.metric}` needs {wanted}")
        return self

    @property
    def limit(self) -> float:
        """The difference or factor."""
        (limit,) = (bound for bound in (self.max_drop, self.max_factor) if bound is not None)
        return limit

    def worse(self, old: float, new: float) -> bool:
        """Whether `new` is worse than `old` by more than is tolerated."""
        if self.metric in HIGHER_IS_BETTER:
            return not new >= old - self.limit
        return not new <= old * self.limit

    def better(self, old: float, new: float) -> bool:
        """Whether `new` is as much better."""
        return self.worse(new, old)


def _require_one_of(**bounds: float | None) -> None:
    given = [key for key, value in bounds.items() if value is not None]
    if len(given) != 1:
        raise refusal(f"needs exactly one of {' and '.join(bounds)}")


def _require_measured(metric: Metric, levels: tuple[JudgedLevel, ...]) -> None:
    only = "conversion" if metric == RATIO else "generation" if metric in IMAGE_METRICS else None
    if only and levels != (only,):
        raise refusal(f"`{metric}` is measured at level {only} only")


class PolicyFile(Section):
    """A policy as TOML has it, but for its `schema`."""

    version: Text = Field(examples=["1"])
    gate: Tables[GateTable] = ()
    tolerance: Tables[Tolerance] = ()

    @field_validator("gate")
    @classmethod
    def _judges_something(cls, gates: tuple[GateTable, ...]) -> tuple[GateTable, ...]:
        if not gates:
            raise refusal("there is none; write [[gate]] once for each")
        return gates


def read_policy_file(path: Path) -> PolicyFile:
    """The tables of a policy.

    Raises:
        InputError: no such file, not TOML, or a line for each key or value that is not known.
    """
    values = read_toml(path)
    schema = values.pop("schema", None)
    if schema != 1 or isinstance(schema, bool):
        raise InputError(f"`schema` is {shown(schema)}; this tool reads 1", where=path)
    try:
        return PolicyFile.model_validate(values)
    except ValidationError as error:
        raise refused(error, PolicyFile, path) from error
