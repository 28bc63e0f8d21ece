"""The schedulers' names as recipes and commands have them, and diffusers' classes behind them.

Each is made from the checkpoint's own scheduler config, so that its noise schedule, prediction
type and timestep spacing stay; only what the name says is set. Source: diffusers' documentation,
"Schedulers", table of A1111's and k-diffusion's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.errors import InputError, nearest
from convert.files.json_files import reason
from convert.values import SCHEDULERS, Scheduler
from verify.reference.reference import quiet

DPMPP = "dpmsolver++"
DPMPP_SDE = "sde-dpmsolver++"
CLASSES: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": DPMPP, "use_karras_sigmas": False},
    ),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": DPMPP, "use_karras_sigmas": True},
    ),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": DPMPP_SDE, "use_karras_sigmas": False},
    ),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": DPMPP_SDE, "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
}


def make_scheduler(name: str | None, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of that name on a checkpoint's scheduler config.

    Args:
        name: of `convert.values.SCHEDULERS`; the one that the config names if None.

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
        kind, settings = CLASSES[require_scheduler(name)]
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
            problem = f"{kind} cannot use the checkpoint's scheduler config: {reason(error)}"
            raise InputError(problem) from error


def evaluations(scheduler: Any, steps: int, strength: float | None) -> int:
    """How often a run evaluates the UNet; a `strength` below 1 skips the first steps."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    skipped = 0 if strength is None else steps - min(int(steps * strength), steps)
    return max(len(fresh.timesteps) - skipped * int(getattr(fresh, "order", 1)), 0)


def require_scheduler(name: str) -> Scheduler:
    """The name, if there is such a scheduler; else InputError."""
    for known in SCHEDULERS:
        if known == name:
            return known
    near = nearest(name, SCHEDULERS)
    raise InputError(
        f"unknown scheduler `{name}`; there are {', '.join(SCHEDULERS)}",
        hint=f"Did you mean `{near}`?" if near else None,
    )
