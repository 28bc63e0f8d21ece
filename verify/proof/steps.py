"""How many steps a task has, for people who wait for it: a step is a network run once."""

from __future__ import annotations

from convert.components import COMPONENTS
from verify.proof.tasks import ProofContext, ProofTask
from verify.reference.kept import run_by
from verify.reference.recording import case_names
from verify.sampling.sampling import STRENGTH, kinds_of


def steps(context: ProofContext, task: ProofTask) -> int:
    """The steps of a task, each of which is told as it begins."""
    if task.kind in ("artifact", "package"):
        return 1
    if task.kind in ("traces", "pictures"):
        asked, kinds = context.asked, kinds_of(context.components)
        whole = sum(1.0 if kind == "text-to-image" else STRENGTH for kind in kinds)
        runs = 1 if task.kind == "traces" else 2  # free-running, teacher-forced
        return max(1, round(runs * whole * asked.steps * len(asked.prompts)))
    component = task.member.component
    if task.kind == "numbers":
        return _cases(context, task, component)
    if task.kind == "decoded":
        return _cases(context, task, component) * (2 if component in context.half else 1)
    wanted = context.recorded(own=task.own)
    names = run_by(context.checkpoint, wanted)
    halves = [name for name in wanted if name in context.half]
    return sum(_cases(context, task, name) for name in (*names, *halves))


def _cases(context: ProofContext, task: ProofTask, component: str) -> int:
    assert task.execution is not None
    timesteps, embeddings = task.execution.timesteps, context.checkpoint.embeddings
    if COMPONENTS[component].kind == "text_encoder" and task.own:
        return 2  # a prompt and a negative one, for the UNet
    return len(case_names(component, timesteps, embeddings))
