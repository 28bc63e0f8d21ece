"""What has to be done to prove a run's artifacts, and what each thing is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.files.cache import key_of
from convert.recipe.sections import Verify
from verify.judge.checks import PICTURE_LEVELS
from verify.proof.keep import made_by
from verify.proof.scheme import Execution
from verify.proof.shipped import WEIGHTS, Shipped
from verify.question import COMPARED
from verify.reference.kept import recording_key
from verify.reference.recording import Denoising
from verify.runtime.runtimes import Runtime, choose

# In the order in which they are done: each may need what those before it have left.
TaskKind = Literal["artifact", "package", "recording", "decoded", "numbers", "traces", "pictures"]
OF_PACKAGES = ("structure", "weights", "graph")  # levels of packages as they are


@dataclass(frozen=True)
class ProofContext:
    """What all tasks of a run share; goes to worker processes as it is.

    Attributes:
        digests: SHA-256 (hex) of the checkpoint's files, by their names in it.
        components: of the artifacts.
        half: of these, those that compute in float16.
        cache: the run's.
    """

    checkpoint: Checkpoint
    digests: Mapping[str, str]
    components: tuple[str, ...]
    half: tuple[str, ...]
    asked: Verify
    cache: Path
    device: str = "cpu"

    @property
    def runtime(self) -> Runtime:
        """What runs programs here."""
        return choose(device=self.device)

    @property
    def levels(self) -> tuple[str, ...]:
        """Those that are asked for."""
        return tuple(self.asked.levels)

    @property
    def compares(self) -> bool:
        """Whether anything is executed, component by component."""
        return not set(COMPARED).isdisjoint(self.levels)

    @property
    def makes_pictures(self) -> bool:
        """Whether artifacts are executed as a whole."""
        return not set(PICTURE_LEVELS).isdisjoint(self.levels)

    def denoising(self, execution: Execution) -> Denoising:
        """The recorded run in whose steps something is executed."""
        asked, timesteps = self.asked, execution.timesteps
        guidance = asked.guidance
        return Denoising(asked.prompts[0], asked.negative_prompt, guidance, timesteps=timesteps)

    def recorded(self, *, own: bool) -> tuple[str, ...]:
        """Components whose cases are wanted: at the true size those that have one."""
        return tuple(c for c in self.components if not own or COMPONENTS[c].has_resolution)


@dataclass(frozen=True)
class ProofTask:
    """One thing to do, for all whose key it is.

    Attributes:
        member: on whose files it is done.
        key: of all that it is about.
        execution: how numbers are had; None where nothing is executed or prepared for it.
        recording: the key of the reference's run that it needs, or is.
        probe: the key of the program that is executed in the package's place, if one is.
        own: whether the reference is run with the member's own weights, decoded, instead of the
            checkpoint's: at the true size one run of it does for all that is to be compared.
        tolerant: the package is broken: that it cannot be run is no more than a finding.
    """

    kind: TaskKind
    member: Shipped
    key: str
    execution: Execution | None = None
    recording: str | None = None
    probe: str | None = None
    own: bool = False
    tolerant: bool = False

    def __str__(self) -> str:
        where = f" at {self.execution.size}" if self.execution else ""
        return f"{self.kind} of {self.member}{where}"


@dataclass
class Tasks:
    """Tasks by what they are about: equal ones have equal keys."""

    context: ProofContext
    _tensors: dict[str, str] = field(default_factory=dict)
    _recordings: dict[tuple[Execution, str | None], str] = field(default_factory=dict)

    def artifact(self, member: Shipped) -> ProofTask:
        """Level structure of an artifact's folder: its files beside the manifest."""
        artifact = member.artifact
        stamps = [[name, *_stamp(artifact.path / name)] for name in sorted(artifact.files)]
        about = [stamps, [*artifact.packages], vars(artifact)["problems"], self._about(member)]
        documents = [dict(artifact.claims), dict(artifact.pipeline), dict(artifact.files)]
        return ProofTask("artifact", member, self._key("artifact", about, documents))

    def package(self, member: Shipped, execution: Execution | None) -> ProofTask:
        """Levels structure, weights and graph of a package, the last beside what is executed."""
        probe = self._probe(member, execution)
        levels = [level for level in self.context.levels if level in OF_PACKAGES]
        key = self._key("package", self._about(member), levels, probe)
        return ProofTask("package", member, key, execution, probe=probe)

    def recording(self, member: Shipped, execution: Execution, *, own: bool = False) -> ProofTask:
        """A run of the reference."""
        key = self._recording(member, execution, own)
        return ProofTask("recording", member, key, execution, recording=key, own=own)

    def decoded(self, member: Shipped, execution: Execution) -> ProofTask:
        """Level compression of a weight file, and what PyTorch makes of its decoded weights."""
        recording = self._recording(member, execution, own=False)
        # Whatever the program around them is: of every attention, the weights are the same.
        own = [member.component, member.weights, dict(member.compression)]
        key = self._key("decoded", recording, own, self._tensors_of(member.component))
        return ProofTask("decoded", member, key, execution, recording=recording)

    def numbers(self, member: Shipped, execution: Execution, *, own: bool = False) -> ProofTask:
        """Level conversion of what is executed."""
        recording = self._recording(member, execution, own)
        probe = self._probe(member, execution)
        what = probe or self._about(member)
        key = self._key("numbers", recording, what, member.component, self.context.makes_pictures)
        return ProofTask("numbers", member, key, execution, recording, probe, own)

    def traces(self, member: Shipped) -> ProofTask:
        """Whole runs of the reference at an artifact's size."""
        key = self._traces(member)
        return ProofTask("traces", member, key, recording=key)

    def pictures(self, member: Shipped) -> ProofTask:
        """Whole runs of an artifact."""
        artifact, traces = member.artifact, self._traces(member)
        about = [dict(artifact.files), dict(artifact.pipeline), traces]
        levels = [level for level in self.context.levels if level in PICTURE_LEVELS]
        key = self._key("pictures", about, levels)
        return ProofTask("pictures", member, key, recording=traces)

    def _key(self, *about: Any) -> str:
        return key_of([*about, self.context.runtime.name, made_by()])

    def _about(self, member: Shipped) -> list[Any]:
        """Everything that a package is, and what it is compared with."""
        asked = member.artifact.asked.get(member.component)
        wanted = asked.model_dump() if asked is not None else None
        files = [dict(member.files), dict(member.claims), wanted]
        return [member.component, *files, self._tensors_of(member.component)]

    def _weights(self, member: Shipped) -> list[Any]:
        """What tells a package from others but for its size."""
        claims = {name: value for name, value in member.claims.items() if name != "resolution"}
        about = [member.component, member.weights, dict(member.compression), claims]
        return [*about, self._tensors_of(member.component)]

    def _probe(self, member: Shipped, execution: Execution | None) -> str | None:
        if execution is None or not execution.probe:
            return None
        return self._key("probe", str(execution.size), self._weights(member))

    def _recording(self, member: Shipped, execution: Execution, own: bool) -> str:
        context, weights = self.context, None
        if own:
            files = member.artifact.files.items()
            weights = key_of({n: dict(facts) for n, facts in files if n.endswith(WEIGHTS)})
        known = execution, weights
        if known not in self._recordings:
            self._recordings[known] = recording_key(
                context.checkpoint,
                context.digests,
                context.recorded(own=own),
                resolution=execution.size,
                fp16=context.half,
                denoising=context.denoising(execution),
                device=context.device,
                weights=weights,
            )
        return self._recordings[known]

    def _traces(self, member: Shipped) -> str:
        """Of all that a whole run of the reference depends on."""
        at = Execution(member.resolution, (1,))
        asked = self.context.asked.model_dump(mode="json", exclude={"levels", "gates", "effort"})
        return self._key("traces", self._recording(member, at, own=False), asked)

    def _tensors_of(self, component: str) -> str:
        if component not in self._tensors:
            context = self.context
            own = context.checkpoint.tensor_keys(component, context.digests)
            documents = context.checkpoint.document_digests()
            self._tensors[component] = key_of([own, documents, _configs(context.digests)])
        return self._tensors[component]


def _configs(digests: Mapping[str, str]) -> dict[str, str]:
    """Of the checkpoint's files but for its weights."""
    return {name: digest for name, digest in digests.items() if name.endswith((".json", ".txt"))}


def _stamp(path: Path) -> list[int]:
    """What changes when a file does; nothing of one that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
