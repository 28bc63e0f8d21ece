"""diffusers' schedulers, by the names that recipes and commands have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.errors import InputError
from convert.files.json_files import reason
from convert.process.interrupts import require_uninterrupted
from convert.recipe.schedulers import SCHEDULERS, require_scheduler
from verify.reference.reference import quiet


def make_scheduler(name: str | None, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of that name on a checkpoint's scheduler config.

    Args:
        name: of `convert.recipe.schedulers`; the one that the config names if None.

    Raises:
        InputError: there is no such scheduler, or it cannot use the config.
    """
    import diffusers

    settings: dict[str, Any] = {}
    if name is None:
        kind = str(config.get("_class_name") or "EulerDiscreteScheduler")
        found = getattr(diffusers, kind, None)
        if not isinstance(found, type) or not issubclass(found, diffusers.SchedulerMixin):
            raise InputError(f"the checkpoint's scheduler, {kind}, is not one that diffusers has")
    else:
        made = SCHEDULERS[require_scheduler(name)]
        kind, settings = made.name, dict(made.settings)
    with quiet():
        try:
            values = {k: float(v) if v in ("inf", "-inf") else v for k, v in config.items()}
            made = getattr(diffusers, kind).from_config(values, **settings)
            # Values of some keys are only used here.
            type(made).from_config(made.config).set_timesteps(2)
            return made
        except MemoryError:
            raise
        except Exception as error:  # whatever Python raises of values of the wrong type
            require_uninterrupted()
            problem = f"{kind} cannot use the checkpoint's scheduler config: {reason(error)}"
            raise InputError(problem) from error


def evaluations(scheduler: Any, steps: int, strength: float | None) -> int:
    """How often a run evaluates the UNet; a `strength` below 1 skips the first steps."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    skipped = 0 if strength is None else steps - min(int(steps * strength), steps)
    return max(len(fresh.timesteps) - skipped * int(getattr(fresh, "order", 1)), 0)
