"""The method of every tensor: what a recipe's `[compress]` makes of the matrix's bits.

The most specific wins: a tensor's own bits, then its component's, then the artifact's. Artifacts of
16 bits stay as the checkpoint has them, and so does the VAE unless a recipe names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import Tensor
from convert.components import COMPONENTS
from convert.errors import InputError, nearest
from convert.recipe.sections import Compress, TensorBits
from convert.values import Bits
from convert.weights.compress import PALETTES, Compression, Method, choose_method, is_compressible

UNCOMPRESSED = Bits("16")


def component_bits(component: str, artifact: Bits, compress: Compress) -> Bits:
    """The bits of a component in an artifact of some bits."""
    own: Bits | None = getattr(compress.components, component, None)
    if artifact == UNCOMPRESSED:
        return artifact
    if own is not None:
        return own
    return artifact if COMPONENTS[component].is_compressed else UNCOMPRESSED


def choose_methods(
    tensors: Mapping[str, Tensor],
    component: str,
    bits: Bits,
    compress: Compress,
    widths: Mapping[str, str] | None = None,
) -> Compression:
    """The methods of a component's tensors in an artifact that is compressed.

    Args:
        tensors: of the component, by name.
        bits: of `component_bits`.
        widths: bits by tensor's name, which come before `bits`; of a mixed allocation.
    """
    own = own_bits(tensors, component, compress)
    chosen: dict[str, Method | None] = {}
    for name, tensor in tensors.items():
        override = own.get(name)
        width = (widths or {}).get(name, bits) if override is None else override.bits
        size = compress.group_size
        if override is not None and override.group_size is not None:
            size = override.group_size
        chosen[name] = choose_method(name, tensor, width, size)
    return Compression.of(chosen)


def own_bits(
    tensors: Mapping[str, Tensor], component: str, compress: Compress
) -> dict[str, TensorBits]:
    """The override of each tensor of a component that has one; the last that names it."""
    found = {}
    for override in compress.tensors:
        if override.component == component:
            for name in fnmatch.filter(tensors, override.name):
                if is_compressible(name, tensors[name]):
                    found[name] = override
    return found


def require_sense(checkpoint: Checkpoint, compress: Compress) -> None:
    """Raise InputError for an override of what the checkpoint does not have, or cannot compress."""
    for component in compress.components.model_dump(exclude_none=True):
        checkpoint.part(component)
    for index, override in enumerate(compress.tensors):
        where = f"compress.tensors[{index}]"
        checkpoint.part(override.component)
        tensors = checkpoint.component_tensors(override.component)
        able = [name for name, tensor in tensors.items() if is_compressible(name, tensor)]
        if fnmatch.filter(able, override.name):
            continue
        if fnmatch.filter(tensors, override.name):
            raise InputError(
                f"`{override.name}` of {override.component} is never compressed",
                where=where,
                hint="Weights of convolutions and linear layers are, if they are not very small.",
            )
        near = nearest(override.name, able) or next(iter(able), None)
        raise InputError(
            f"{override.component} has no tensor `{override.name}`",
            where=where,
            hint=f"Did you mean `{near}`?" if near else None,
        )


def require_divisible(
    tensors: Mapping[str, Tensor], component: str, compression: Compression
) -> None:
    """Raise InputError if a group size does not divide the output channels of a tensor."""
    undivided = {
        name: method.group_size
        for name, method in compression.methods
        if method.bits in PALETTES
        and method.group_size is not None
        and tensors[name].shape[0] % method.group_size
    }
    if not undivided:
        return
    name, size = next(iter(undivided.items()))
    more = f" (and {len(undivided) - 1} more)" if len(undivided) > 1 else ""
    raise InputError(
        f"group_size {size} does not divide the {tensors[name].shape[0]} output channels of "
        f"{component}'s `{name}`{more}",
        hint="Use a group size that divides them, or give the tensor another in a recipe, with "
        "[[compress.tensors]].",
    )
