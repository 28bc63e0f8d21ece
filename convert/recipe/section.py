"""What all tables of a recipe have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of a recipe: strict types, unknown keys refused, immutable and hashable."""

    LATER: ClassVar[Mapping[str, str]] = {}  # keys that no command honours yet, and what to do

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False
    )
