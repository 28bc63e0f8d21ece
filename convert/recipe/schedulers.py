"""The schedulers: their names in recipes, what people call them, and diffusers' classes.

Each is made from the checkpoint's own scheduler config, so that its noise schedule, prediction
type and timestep spacing stay; only what the name says is set. Source: diffusers' documentation,
"Schedulers", table of A1111's and k-diffusion's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from convert.errors import InputError

# The names that image-generation apps use.
Scheduler = Literal[
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "euler",
    "euler_a",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "unipc",
]


@dataclass(frozen=True)
class SchedulerClass:
    """One scheduler: how it is shown, and how diffusers makes it."""

    title: str
    name: str  # of diffusers' class
    settings: Mapping[str, str | bool] = field(default_factory=dict)


def _multistep(title: str, algorithm: str, *, karras: bool) -> SchedulerClass:
    settings: dict[str, str | bool] = {"algorithm_type": algorithm, "use_karras_sigmas": karras}
    return SchedulerClass(title, "DPMSolverMultistepScheduler", settings)


DPMPP, DPMPP_SDE = "dpmsolver++", "sde-dpmsolver++"
EVEN = {"use_karras_sigmas": False}
SCHEDULERS: dict[Scheduler, SchedulerClass] = {
    "ddim": SchedulerClass("DDIM", "DDIMScheduler"),
    "ddpm": SchedulerClass("DDPM", "DDPMScheduler"),
    "dpmpp_2m": _multistep("DPM++ 2M", DPMPP, karras=False),
    "dpmpp_2m_karras": _multistep("DPM++ 2M Karras", DPMPP, karras=True),
    "dpmpp_2m_sde": _multistep("DPM++ 2M SDE", DPMPP_SDE, karras=False),
    "dpmpp_2m_sde_karras": _multistep("DPM++ 2M SDE Karras", DPMPP_SDE, karras=True),
    "euler": SchedulerClass("Euler", "EulerDiscreteScheduler", EVEN),
    "euler_a": SchedulerClass("Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": SchedulerClass("Heun", "HeunDiscreteScheduler", EVEN),
    "lcm": SchedulerClass("LCM", "LCMScheduler"),
    "lms": SchedulerClass("LMS", "LMSDiscreteScheduler", EVEN),
    "pndm": SchedulerClass("PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": SchedulerClass("UniPC", "UniPCMultistepScheduler", EVEN),
}


def require_scheduler(name: str) -> Scheduler:
    """The name, if there is such a scheduler; else InputError."""
    for known in SCHEDULERS:
        if known == name:
            return known
    raise InputError(
        f"unknown scheduler `{name}`; there are {', '.join(SCHEDULERS)}",
        near=(name, list(SCHEDULERS)),
    )


def title(name: str) -> str:
    """What people call a scheduler; the name itself of one that is not ours."""
    return next((found.title for known, found in SCHEDULERS.items() if known == name), name)
