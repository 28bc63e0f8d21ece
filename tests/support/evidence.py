"""Reports of whole matrices as JSON, as a run leaves them at each effort; nothing was executed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from convert.components import COMPONENTS
from convert.values import Effort

Report = dict[str, Any]
SMALL = "320x448"
SIZES = (
    "1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344",
    "1536x640", "640x1536",
)  # fmt: skip
TIMESTEPS = (999, 800, 600, 400, 200, 1)
LOWEST = {"16": 55.0, "8": 38.0, "6": 24.0, "4": 9.0}


def artifact(attention: str, bits: str, size: str, name: str = "animagine-xl-3.1") -> str:
    """The name that the default template gives."""
    return f"{name}_{attention.replace('_', '-')}_{bits}-bit_{size}"


def evidence(effort: Effort, size: str, elsewhere: str | None = None) -> dict[str, list[str]]:
    """The words of a whole artifact.

    Args:
        elsewhere: the artifact that was executed at its true size in this one's place, at
            standard effort; its name ends in its size.
    """
    found = {}
    for component, spec in COMPONENTS.items():
        words = ["weights", "graph", "numbers"]
        if spec.has_resolution:
            words[2] += f" {size if effort == 'thorough' else SMALL}"
        if spec.has_resolution and effort == "standard":
            what = "t=999" if component == "unet" else "run"
            of = f"{elsewhere.rpartition('_')[2]} of {elsewhere}" if elsewhere else size
            words.append(f"{what} {of}")
        found[component] = words
    return found


def check(
    level: str, component: str, case: str, snr_db: float | None = None, **more: Any
) -> Report:
    """A check that passed."""
    metrics = None
    if snr_db is not None:
        metrics = {
            "snr_db": snr_db, "nrmse": 0.001, "cosine": 0.999999, "max_abs": 0.01,
            "p99_abs": 0.004, "finite": True, "fp16_snr_db": snr_db + 1, "fp16_error_ratio": 1.1,
        }  # fmt: skip
    return {
        "level": level, "component": component, "case": case, "output": None, "metrics": metrics,
        "gate": "snr_db >= 9" if metrics else "is right", "verdict": "pass", "message": "", **more,
    }  # fmt: skip


def report(
    attention: str = "original",
    bits: str = "16",
    size: str = "1024x1024",
    effort: Effort = "standard",
    *,
    elsewhere: str | None = None,
    name: str = "animagine-xl-3.1",
) -> Report:
    """A report that passed, with the checks and the evidence of its effort."""
    own = effort == "thorough"
    at = {} if own else {"size": SMALL}
    checks = [check("structure", "artifact", "files")]
    for component, spec in COMPONENTS.items():
        checks += [check("weights", component, "all"), check("graph", component, "ops")]
        if spec.kind == "text_encoder":
            checks.append(check("conversion", component, "prompt", 61.0, output="hidden_embeds"))
        elif component != "unet":
            output = next(iter(spec.outputs))
            checks.append(check("conversion", component, "latents", 66.0, output=output, **at))
    for t, half in product(TIMESTEPS, ("cond", "uncond")):
        snr_db = 55.0 + t / 500
        case = f"t={t} {half}"
        checks.append(check("conversion", "unet", case, snr_db, output="noise_pred", **at))
        if bits != "16":
            low = LOWEST.get(bits, 15.0) + t / 500
            checks.append(check("compression", "unet", case, low, output="noise_pred", **at))
    if effort == "standard" and elsewhere is None:
        case = "t=999 cond"
        checks.append(check("conversion", "unet", case, 54.0, output="noise_pred"))
    return {
        "schema": 1, "verdict": "pass", "artifact": artifact(attention, bits, size, name),
        "source": "cagliostrolab/animagine-xl-3.1", "resolution": size, "attention": attention,
        "bits": bits, "compressed": [] if bits == "16" else ["unet"], "runtime": "torch",
        "scope": "Core ML itself was not run", "policy": "1", "versions": {"torch": "2.4.0"},
        "effort": effort, "evidence": evidence(effort, size, elsewhere), "checks": checks,
    }  # fmt: skip


def fail(
    report: Report, level: str = "graph", component: str = "unet", verdict: str = "fail"
) -> Report:
    """A report whose checks of a level and component did not pass; it is changed."""
    message = "op 812, reshape: shape[2] is 104, where the size map says 152"
    for found in report["checks"]:
        if (found["level"], found["component"]) == (level, component):
            found.update(verdict=verdict, message=message)
    report["verdict"] = verdict
    return report


def matrix(
    attentions: Sequence[str] = ("original", "split_einsum"),
    sizes: Sequence[str] = SIZES,
    bits: Sequence[str] = ("16", "8", "6", "4"),
    effort: Effort = "standard",
) -> list[Report]:
    """A run of a whole matrix; at standard effort the first of each attention is executed."""
    found = []
    for attention in attentions:
        executed = artifact(attention, bits[0], sizes[0])
        for size, width in product(sizes, bits):
            is_other = artifact(attention, width, size) != executed
            elsewhere = executed if effort == "standard" and is_other else None
            found.append(report(attention, width, size, effort, elsewhere=elsewhere))
    return found
