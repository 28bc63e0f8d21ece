"""What is asked of a verification, and what there is to compare with.

Unknown names, and two recordings of one thing, are refused where they are written down; whether a
question can be asked of an artifact is `require_possible`'s to say. Neither reads a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.recipe.sections import Verify
from convert.values import COMPONENT_LEVELS, LEVELS, Effort, Level, Resolution
from verify.artifact.artifact import LONE
from verify.judge.checks import PICTURE_LEVELS
from verify.judge.gates import Gate, recipe_gates
from verify.judge.policy import Policy, load_policy
from verify.judge.rules import Rules
from verify.runtime.runtimes import Runtime, choose

if TYPE_CHECKING:
    from verify.golden import Golden
    from verify.reference.recording import Recording
    from verify.sampling.sampling import Trace

COMPARED: tuple[Level, ...] = ("conversion", "compression")  # levels of recorded cases


@dataclass(frozen=True)
class Question:
    """What is asked of an artifact.

    Attributes:
        levels: of `LEVELS`. Those of whole runs, `generation` and `sanity`, take the reference and
            the artifact through every step of every picture, so they are not among the default.
        components: those that must be there and are checked; all that the checkpoint has if None.
        effort: how much is executed. At `thorough` the artifact at its own size, at all timesteps;
            at `quick` and `standard` its weights in graphs for a small size, at `standard` also
            once as it is (`verify.proof.alone`).
        timesteps: at which the UNet is compared; those of `verify.reference.schedule` if None.
        probe: compare at this size instead of the packages' own, with their own weights; see
            `verify.artifact.probe`. Structure is that of the packages as they are.
        recipe: its [verify], whose gates are asked and which says what pictures are made.
        minimum: SNR in dB, by component, that compression must leave in the outputs; what the
            gates of `recipe` say for these bits if None.
        policy: the built-in one by default.
        runtime: auto, coreml or torch, or one that is already there.
        device: where PyTorch computes: cpu, cuda or mps.

    Raises:
        InputError: an unknown level or component.
    """

    levels: Collection[str] = COMPONENT_LEVELS
    components: Collection[str] | None = None
    effort: Effort = "thorough"
    timesteps: Sequence[int] | None = None
    probe: Resolution | None = None
    recipe: Verify = field(default_factory=Verify)
    minimum: Mapping[str, float] | None = None
    policy: Policy = field(default_factory=load_policy)
    runtime: str | Runtime = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for level in self.levels:
            if level not in LEVELS:
                raise InputError(
                    f"unknown level `{level}`; there are {', '.join(LEVELS)}",
                    near=(level, LEVELS),
                )
        for name in self.components or ():
            if name not in COMPONENTS:
                raise InputError(
                    f"there is no component `{name}`; there are {', '.join(COMPONENTS)}",
                    near=(name, list(COMPONENTS)),
                )

    @property
    def compares(self) -> bool:
        """Whether components are compared, each by itself."""
        return not set(COMPARED).isdisjoint(self.levels)

    @property
    def makes_pictures(self) -> bool:
        """Whether whole runs are compared."""
        return not set(PICTURE_LEVELS).isdisjoint(self.levels)

    @cached_property
    def runner(self) -> Runtime:
        """What runs the artifact. Raises InputError if that is not known, or not here."""
        if isinstance(self.runtime, str):
            return choose(self.runtime, device=self.device)
        return self.runtime

    def rules(self, bits: str | None, *, where: Path) -> Rules:
        """What the numbers of the artifact at `where` are judged by, whose bits these are.

        Raises:
            InputError: the recipe has gates, and nobody knows the bits.
        """
        if self.recipe.gates and bits is None:
            raise InputError(
                "the recipe's gates are for weights of certain bits, and the bits of these are not "
                "known",
                where=where,
                hint="Verify the artifact's folder, whose manifest says them.",
            )
        gates = recipe_gates(self.recipe.gates, bits)
        if self.minimum is not None:
            own = [
                Gate("compression", (name,), "snr_db", True, value, "asked for")
                for name, value in self.minimum.items()
            ]
            gates = (*(gate for gate in gates if gate.level != "compression"), *own)
        return Rules(self.policy, bits, gates)


@dataclass(frozen=True)
class Evidence:
    """What an artifact is compared with: its checkpoint, what was recorded of it before, or both.

    Attributes:
        source: the checkpoint; may be None where there is a golden bundle. Without it, what
            compression did to single weights cannot be told, and is said to be indeterminate.
        golden: what the reference did, recorded before, in place of running it.
        recording: of the checkpoint at the artifact's resolution, made before; artifacts that
            differ in attention or bits can share one. Made anew if None.
        traces: whole runs of the reference at that resolution; the same holds for them.

    Raises:
        InputError: nothing to compare with, or two recordings.
    """

    source: Checkpoint | None = None
    golden: Golden | None = None
    recording: Recording | None = None
    traces: Sequence[Trace] | None = None

    def __post_init__(self) -> None:
        if self.golden is None and self.source is None:
            raise InputError("neither a checkpoint nor a golden bundle to compare with")
        if self.golden is not None and (self.recording is not None or self.traces is not None):
            raise InputError("a golden bundle has its own recording and its own pictures")

    @classmethod
    def of(cls, given: Evidence | Checkpoint | Golden) -> Evidence:
        """A checkpoint or a golden bundle by itself as evidence."""
        if isinstance(given, Evidence):
            return given
        return cls(given) if isinstance(given, Checkpoint) else cls(golden=given)

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint, or what a golden bundle has of it: everything but the weights."""
        if self.source is not None:
            return self.source
        assert self.golden is not None  # or there is nothing to compare with
        return self.golden.checkpoint

    @property
    def recorded(self) -> Recording | None:
        """The cases of components that are there already."""
        return self.golden.recording if self.golden else self.recording

    @property
    def traced(self) -> Sequence[Trace] | None:
        """The whole runs that are there already."""
        return self.golden.traces if self.golden else self.traces


def require_possible(path: Path, question: Question, *, golden: bool = False) -> None:
    """Raise InputError unless what is asked of an artifact goes together; no file is read.

    Args:
        golden: with a golden bundle to compare with.
    """
    pictures, probe = question.makes_pictures, question.probe is not None
    if probe and (pictures or golden):
        raise InputError(
            "a probe compares components; it makes no pictures and needs no golden bundle",
            hint="Leave out --probe, or --golden and the levels generation and sanity.",
        )
    if question.effort != "thorough" and (probe or golden or question.timesteps is not None):
        given = "a probe" if probe else "a golden bundle" if golden else "timesteps"
        raise InputError(
            f"an effort chooses sizes and timesteps; so does {given}",
            hint="Leave one of them out.",
        )
    if question.timesteps is not None and (golden or not question.compares):
        why = "a golden bundle has its own" if golden else "no level compares the UNet"
        raise InputError(f"timesteps are asked for; {why}", hint="Leave out --timestep.")
    if pictures and path.suffix in LONE:
        raise InputError(
            "one package makes no pictures",
            where=path,
            hint="Give the artifact's folder, or leave out --level generation and sanity.",
        )
