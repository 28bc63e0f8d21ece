"""What a recipe asks of weights: what its `[compress]` makes of the matrix's bits.

The most specific wins: a tensor's own bits, then its component's, then the artifact's. Artifacts of
16 bits stay as the checkpoint has them, and so does the VAE unless a recipe names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from convert.checkpoint.tensors import Tensor
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.recipe.sections import Compress, TensorBits
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
    """A component's tensors and what is asked of them; of overrides the last that names one.

    Raises:
        InputError: an override of what the component does not have, or cannot compress.
    """
    able = {name: tensor for name, tensor in tensors.items() if is_compressible(name, tensor)}
    asked: dict[str, TensorBits] = {}
    for index, override in enumerate(compress.tensors):
        if override.component != component:
            continue
        named = fnmatch.filter(able, override.name)
        asked |= dict.fromkeys(named, override)
        if not named and fnmatch.filter(tensors, override.name):
            raise InputError(
                f"`{override.name}` of {component} is never compressed",
                where=f"compress.tensors[{index}]",
                hint="Weights of convolutions and linear layers are, if they are not very small.",
            )
        if not named:
            raise InputError(
                f"{component} has no tensor `{override.name}`",
                where=f"compress.tensors[{index}]",
                near=(override.name, list(able)),
                hint=f"Did you mean `{next(iter(able))}`?" if able else None,
            )
    return ComponentWeights(component, tensors, able, asked, compress.group_size)
