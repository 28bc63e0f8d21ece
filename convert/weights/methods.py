"""What a recipe asks of weights: what a recipe's `[compress]` makes of the matrix's bits.

The most specific wins: a tensor's own bits, then its component's, then the artifact's. Artifacts of
16 bits stay as the checkpoint has them, and so does the VAE unless a recipe names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from convert.checkpoint.tensors import Tensor
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.recipe.sections import Compress
from convert.values import Bits
from convert.weights.compress import UNCOMPRESSED, ComponentWeights, is_compressible


def component_bits(component: str, artifact: Bits, compress: Compress) -> Bits:
    """The bits of a component in an artifact of some bits."""
    own: Bits | None = getattr(compress.components, component, None)
    if artifact == UNCOMPRESSED:
        return artifact
    if own is not None:
        return own
    return artifact if COMPONENTS[component].is_compressed else UNCOMPRESSED


def component_weights(
    component: str, tensors: Mapping[str, Tensor], compress: Compress
) -> ComponentWeights:
    """A component's tensors and what is asked of them; of overrides the last that names one."""
    able = {name: tensor for name, tensor in tensors.items() if is_compressible(tensor)}
    asked = {
        name: override
        for override in compress.tensors
        if override.component == component
        for name in fnmatch.filter(able, override.name)
    }
    return ComponentWeights(component, tensors, able, asked, compress.group_size)


def require_sense(weights: Mapping[str, ComponentWeights], compress: Compress) -> None:
    """Raise InputError for an override of what a checkpoint does not have, or cannot compress.

    Args:
        weights: by component; at least those that have overrides.
    """
    for index, override in enumerate(compress.tensors):
        where = f"compress.tensors[{index}]"
        of = weights[override.component]
        if fnmatch.filter(of.compressible, override.name):
            continue
        if fnmatch.filter(of.tensors, override.name):
            raise InputError(
                f"`{override.name}` of {override.component} is never compressed",
                where=where,
                hint="Weights of convolutions and linear layers are, if they are not very small.",
            )
        able = list(of.compressible)
        raise InputError(
            f"{override.component} has no tensor `{override.name}`",
            where=where,
            near=(override.name, able),
            hint=f"Did you mean `{able[0]}`?" if able else None,
        )
