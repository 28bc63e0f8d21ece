"""What the levels look at: an artifact's programs, beside the checkpoint they were made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.values import Resolution
from convert.weights.compress import UNCOMPRESSED
from verify.artifact.artifact import Artifact, open_artifact
from verify.artifact.interface import infer_resolution, is_compressed
from verify.artifact.probe import probe_folder, probe_programs
from verify.artifact.stored import compressed_names
from verify.mil import Program, load_program


@dataclass(frozen=True)
class Subject:
    """An artifact that has been opened; no weight is loaded."""

    artifact: Artifact
    source: Checkpoint  # without weights, where a golden bundle stands for it
    programs: Mapping[str, Program]  # by component; those that are there
    resolution: Resolution | None  # None if neither the manifest nor a package has one

    @property
    def bits(self) -> str | None:
        """As the manifest says; without one, compressed packages do not say theirs."""
        if claimed := self.artifact.claims.get("bits"):
            return claimed
        return None if any(map(is_compressed, self.programs.values())) else UNCOMPRESSED

    @property
    def compressed(self) -> tuple[str, ...]:
        """The components with compressed weights of the checkpoint, not only constants."""
        return tuple(name for name in self.programs if self._is_compressed(name))

    def _is_compressed(self, component: str) -> bool:
        program = self.programs[component]
        if not is_compressed(program) or not self.source.part(component).tensors:
            return is_compressed(program)
        return bool(compressed_names(program, self.source, component))


def open_subject(
    path: Path, source: Checkpoint, components: Collection[str] | None = None
) -> Subject:
    """Open an artifact folder, or one package or compiled model.

    Args:
        components: those to look at; all that the checkpoint has if None.

    Raises:
        InputError: nothing there to verify, or a component that the checkpoint does not have.
        CannotExecute: a package that cannot be read.
    """
    artifact = open_artifact(path, source, components)
    programs = {name: load_program(file) for name, file in artifact.packages.items()}
    if "resolution" in artifact.claims:
        resolution: Resolution | None = Resolution.parse(artifact.claims["resolution"])
    else:
        found = (infer_resolution(program, name, source) for name, program in programs.items())
        resolution = next((size for size in found if size is not None), None)
    return Subject(artifact, source, programs, resolution)


@contextmanager
def probed(subject: Subject, size: Resolution | None) -> Iterator[Subject]:
    """The subject at another size, with its own weights; as it is if that is None."""
    if size is None:
        yield subject
        return
    with probe_folder(subject.artifact.path) as folder:
        programs = probe_programs(subject.programs, subject.source, folder, size=size)
        yield replace(subject, programs=programs, resolution=size)
