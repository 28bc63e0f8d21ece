"""At which size each package is executed, by the effort that is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute
from convert.files.cache import Cache, key_of
from convert.process.code import code_digest
from convert.values import Effort, Resolution
from verify.artifact.probe import TIMESTEPS as SMALL_TIMESTEPS
from verify.equivalence.sizes import small_size_for, step, taken_integers
from verify.mil import load_program
from verify.proof.shipped import Shipped
from verify.reference.recording import SMALLEST
from verify.reference.schedule import TIMESTEPS

TRUE_TIMESTEPS = (999,)  # where a wrong graph shows most: the UNet sees noise, its errors are whole
# Entries of palettes: no size is to be one, or the small size would depend on the bits of a recipe.
ENTRIES = {1 << bits for bits in range(1, 9)}


@dataclass(frozen=True)
class Execution:
    """How the numbers of a package are had.

    Attributes:
        size: of the images.
        timesteps: of the UNet, in falling order.
        probe: whether a program for this size is made around the package's weights; else the
            package itself is executed.
    """

    size: Resolution
    timesteps: tuple[int, ...]
    probe: bool = False


def execution(member: Shipped, effort: Effort, small: Resolution | None) -> Execution:
    """How a package's numbers are had, but for the one look at the true size.

    Args:
        small: the size that stands for the package's; None where there is none.
    """
    size = member.size
    if effort == "thorough":
        return Execution(member.resolution, TIMESTEPS)
    if size is None:
        return Execution(small or SMALLEST, SMALL_TIMESTEPS)
    if small is None or pixels(size) <= pixels(small) or not member.native:
        return Execution(size, SMALL_TIMESTEPS)
    return Execution(small, SMALL_TIMESTEPS, probe=True)


def true_steps(component: str) -> str:
    """What is executed at the true size: a timestep of a UNet, or a VAE once."""
    return f"t={TRUE_TIMESTEPS[0]}" if COMPONENTS[component].kind == "unet" else "run"


def pixels(size: Resolution) -> int:
    """The area of an image."""
    return size.width * size.height


def small_sizes(
    members: Sequence[Shipped], source: Checkpoint, cache: Cache
) -> dict[Resolution, Resolution | None]:
    """For each size of a run, the small one that stands for it; None where there is none.

    Sizes that halve alike share one, as `verify.equivalence.sizes` says.
    """
    sized = [member for member in members if member.size is not None and member.native]
    first = {_variant(member): member for member in reversed(sized)}
    sizes = list(dict.fromkeys(member.resolution for member in sized))
    about = [sorted(member.files.items()) for member in first.values()]
    key = key_of([about, [str(size) for size in sizes], code_digest("measure")])

    def fill(_folder: Any) -> dict[str, Any]:
        found = _small_sizes(first.values(), sizes, source)
        return {str(size): small and str(small) for size, small in found.items()}

    _, facts = cache.entry("sizes", key, fill)
    return {
        Resolution.parse(size): small and Resolution.parse(small) for size, small in facts.items()
    }


def _variant(member: Shipped) -> tuple[Any, ...]:
    return member.component, member.attention, key_of(member.compression)


def _small_sizes(
    members: Iterable[Shipped], sizes: Sequence[Resolution], source: Checkpoint
) -> dict[Resolution, Resolution | None]:
    taken: dict[str, set[int]] = {}
    for member in members:
        program = load_program(member.package)
        numbers = taken_integers(member.component, source, [program]) | ENTRIES
        taken.setdefault(member.component, set()).update(numbers)
    by: dict[tuple[int, int], list[Resolution]] = {}
    for size in sizes:
        by.setdefault((size.width % step(source), size.height % step(source)), []).append(size)
    found: dict[Resolution, Resolution | None] = {}
    for alike in by.values():
        found |= dict.fromkeys(alike, _small(alike, taken, source))
    return {size: found[size] for size in sizes}


def _small(
    sizes: Sequence[Resolution], taken: dict[str, set[int]], source: Checkpoint
) -> Resolution | None:
    wanted: dict[tuple[str, Resolution], Collection[int]] = {
        (component, size): numbers for component, numbers in taken.items() for size in sizes
    }
    try:
        return small_size_for(source, wanted)
    except CannotExecute:
        return None
