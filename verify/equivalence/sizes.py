"""Which integers of a program are heights, widths and areas, and what they are at another size.

A small size is chosen so that every height, width and area in the network is a number of its own,
which occurs nowhere else in it. So each integer of a small program says by itself what it is, and
what has to stand in its place in a program for another size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.configs import UNetConfig
from convert.components import BATCH, COMPONENTS
from convert.errors import CannotExecute
from convert.values import RESOLUTION_STEP, Resolution
from verify.artifact.interface import infer_resolution
from verify.mil import Constant, Program

MOST_STEPS = 96  # along each side, of those that are tried for the small size


class Ambiguous(Exception):
    """An integer of the small program could be two things; says which."""


@dataclass(frozen=True)
class Extent:
    """One size of the network: its name, in the small program and in the shipped one."""

    name: str  # "height of latents at level 1"
    small: int
    shipped: int


@dataclass(frozen=True)
class SizeMap:
    """What every integer of the small program has to be in the shipped one."""

    sizes: Mapping[int, Extent]  # by the number in the small program; all others stay as they are

    def expected(self, small: int) -> int:
        """The number in the shipped program in place of one in the small one."""
        return self.sizes[small].shipped if small in self.sizes else small

    def why(self, small: int) -> str:
        """What the number is, in parentheses after it; empty if it is no size."""
        return f" ({self.sizes[small].name})" if small in self.sizes else ""


SAME = SizeMap({})  # of a component without a size


def size_map(
    component: str,
    source: Checkpoint,
    small: Resolution,
    shipped: Resolution,
    constants: Collection[int],
) -> SizeMap:
    """The map from the program for `small` to that for `shipped`.

    Args:
        constants: numbers of the network that are no sizes, by `constant_integers`, and others
            that are not to be taken for sizes.

    Raises:
        Ambiguous: two sizes are the same number in the small program, or one is a constant, or is
            the same in both programs.
    """
    found: dict[int, Extent] = {}
    there = sizes_of(component, source, shipped)
    here = sizes_of(component, source, small)
    if here.keys() != there.keys():
        name = next(iter(here.keys() ^ there.keys()))
        raise Ambiguous(f"only one of {small} and {shipped} has a {name}")
    for name, value in here.items():
        if value in found:
            raise Ambiguous(f"at {small}, {value} is the {name} and the {found[value].name}")
        if value in constants:
            raise Ambiguous(f"at {small}, {value} is the {name} and a constant of the network")
        if value == there[name]:
            raise Ambiguous(f"{value} is the {name} at {small} and at {shipped}")
        found[value] = Extent(name, value, there[name])
    return SizeMap(found)


def sizes_of(component: str, source: Checkpoint, size: Resolution) -> dict[str, int]:
    """Every height, width and area in a network, by what it is of.

    UNets halve, and round up where a side is odd: what upsampling makes of it is then one more than
    the level above has, and is cut off. VAEs halve exactly, and their encoder adds a row and a
    column before it does.
    """
    if not COMPONENTS[component].has_resolution:
        return {}
    latents = source.vae.latent_size(size)
    found: dict[str, int] = {}
    if COMPONENTS[component].kind == "unet":
        config: UNetConfig = source.unet
        last = len(config.channels) - 1
        height, width = latents
        for level in range(last + 1):
            where = f"of latents at level {level}"
            found |= {f"height {where}": height, f"width {where}": width}
            if _has_attention(config, level):
                found[f"area {where}"] = height * width
            half = (height + 1) // 2, (width + 1) // 2
            for side, full, small in zip(("height", "width"), (height, width), half, strict=True):
                if level < last and 2 * small != full:
                    found[f"{side} upsampled to level {level}, before it is cut"] = 2 * small
            height, width = half
        return found
    levels = len(source.vae.channels)
    for level in range(levels):
        where = "of latents" if level == 0 else f"of the image by {2 ** (levels - 1 - level)}"
        where = "of the image" if level == levels - 1 else where
        for side, value in zip(("height", "width"), latents, strict=True):
            found[f"{side} {where}"] = value << level
            if level and COMPONENTS[component].kind == "vae_encoder":
                found[f"{side} {where}, padded"] = (value << level) + 1
    if source.vae.mid_attention:
        found["area of latents"] = math.prod(latents)
    return found


def _has_attention(config: UNetConfig, level: int) -> bool:
    last = len(config.channels) - 1
    kinds = [config.down_blocks[level], config.up_blocks[last - level]]
    if level == last:
        kinds.append(config.mid_block)
    return any("CrossAttn" in kind for kind in kinds)


def constant_integers(
    component: str, source: Checkpoint, program: Program | None = None
) -> set[int]:
    """The numbers of a network that are no sizes, whatever its size is.

    By the weights' shapes and the config: widths, those of groups and of heads, where heads begin
    and end. By the program, only the shapes of what is in weight files, which are for all sizes.
    """
    found = {0, 1, 2, 3, 4, 5, 8, BATCH}  # axes and how many, their pads on either side
    for tensor in source.component_tensors(component).values():
        found |= {*tensor.shape}
    for shapes in source.shapes(component, None):
        found |= {n for shape in shapes.values() for n in shape}
    kind = COMPONENTS[component].kind
    if kind in ("unet", "vae_decoder", "vae_encoder"):
        groups = source.unet.groups if kind == "unet" else source.vae.groups
        found |= {groups} | {width // groups for width in found if width % groups == 0}
    if kind == "unet":
        found |= {*_unet_integers(source.unet)}
    for constant in _constants(program) if program is not None else ():
        if constant.file is not None:
            found |= {*constant.type.shape}
    return found


def _unet_integers(config: UNetConfig) -> Iterator[int]:
    """Of attentions, and of the embeddings of the timestep and of sizes and crops."""
    for width, heads in zip(config.channels, config.heads, strict=True):
        yield heads
        yield from (width // heads * head for head in range(1, heads + 1))
    dim = config.addition_time_embed_dim
    yield from (config.channels[0] // 2, dim, dim // 2)
    yield from (BATCH * config.time_ids, config.time_ids * dim)


def taken_integers(component: str, source: Checkpoint, programs: Sequence[Program]) -> set[int]:
    """Numbers that no size of a small program should have: of the network, and of programs.

    Those of programs that are no sizes of theirs: no fault is to look like a size by chance.
    """
    found: set[int] = set()
    for program in programs:
        own = infer_resolution(program, component, source)
        sizes = sizes_of(component, source, own).values() if own else ()
        found |= {*integers(program)}.difference(sizes)
        found |= constant_integers(component, source, program)
    return found


def integers(program: Program) -> Iterator[int]:
    """Every integer of a program that is written in it: of types, and of constants."""
    for feature in (*program.inputs, *program.outputs):
        yield from feature.shape
    for type_ in program.main.inputs.values():
        yield from type_.shape
    for op in program.ops:
        for _, type_ in op.outputs:
            yield from type_.shape
    for constant in _constants(program):
        yield from constant.type.shape
        if constant.file is None and constant.array().dtype.kind in "iu":
            yield from constant.array().reshape(-1).tolist()


def _constants(program: Program) -> Iterator[Constant]:
    for op in program.ops:
        yield from op.attributes.values()
        for values in op.inputs.values():
            yield from (value for value in values if isinstance(value, Constant))


def small_size(source: Checkpoint, programs: Mapping[str, Sequence[Program]]) -> Resolution:
    """The smallest size at which every integer of the networks says what it is.

    One size for all programs, so that what is recorded and executed for it is for all of them.

    Args:
        programs: by component, which may be there at several sizes; those that have no size do not
            matter.

    Raises:
        CannotExecute: as `small_size_for`.
    """
    wanted: dict[tuple[str, Resolution], Collection[int]] = {}
    for component, found in programs.items():
        constants = taken_integers(component, source, found)
        sizes = (infer_resolution(program, component, source) for program in found)
        wanted |= {(component, size): constants for size in sizes if size is not None}
    return small_size_for(source, wanted)


def small_size_for(
    source: Checkpoint, wanted: Mapping[tuple[str, Resolution], Collection[int]]
) -> Resolution:
    """The same for components at sizes, with the numbers that no size may have.

    Raises:
        CannotExecute: there is none: nothing has a size, sizes are of unlike kinds (a side of
            latents that is odd at one level in one and even in another), or too many numbers are
            taken.
    """
    if not wanted:
        raise CannotExecute("nothing here has a size")
    kinds = {(r.width % step(source), r.height % step(source)) for _, r in wanted}
    if len(kinds) > 1:
        text = ", ".join(sorted({str(r) for _, r in wanted}))
        raise CannotExecute(f"no one size stands for all of {text}: some halve to odd sides")
    for candidate in _candidates(*kinds.pop(), step(source)):
        try:
            for (component, shipped), constants in wanted.items():
                size_map(component, source, candidate, shipped, constants)
        except Ambiguous:
            continue
        return candidate
    raise CannotExecute("no size is small and has numbers of its own for all heights and widths")


def step(source: Checkpoint) -> int:
    """Pixels by which sides may differ and still halve alike, to even and odd ones."""
    levels = len(source.unet.channels) - 1 if "unet" in source.components else 0
    return math.lcm(source.vae.factor << levels, RESOLUTION_STEP)


def _candidates(width: int, height: int, step: int) -> Iterator[Resolution]:
    """Sizes with these remainders by `step`, the fewest pixels first, then the squarest."""
    sides = [
        (width + i * step, height + j * step)
        for i in range(MOST_STEPS)
        for j in range(MOST_STEPS)
        if width + i * step and height + j * step
    ]
    sides.sort(key=lambda side: (math.prod(side), sum(side), side))
    return (Resolution(*side) for side in sides)
