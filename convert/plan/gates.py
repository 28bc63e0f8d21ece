"""Whether each gate of a recipe judges something: one that does not would pass whatever comes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from convert.errors import InputError
from convert.recipe.recipe import Recipe
from convert.recipe.sections import CompressionGate
from convert.values import Bits
from convert.weights.compress import UNCOMPRESSED, Compression
from convert.weights.methods import component_bits

PIPELINE = "pipeline"  # the gates' name for whole runs


def require_gates(
    recipe: Recipe,
    components: Collection[str],
    compressions: Mapping[tuple[str, Bits], Compression] | None = None,
) -> None:
    """Raise InputError for a gate that no artifact of the recipe's matrix is judged by.

    Args:
        components: those that the checkpoint has.
        compressions: what becomes of a component's tensors in artifacts of some bits, where it is
            known.
    """
    for index, gate in enumerate(recipe.verify.gates):
        planned = (compressions or {}).get((gate.component, gate.bits))
        found = _vain(gate, recipe, components, planned)
        if found is not None:
            problem, hint = found
            raise InputError(problem, where=f"{recipe.name}: verify.gates[{index}]", hint=hint)


def require_gates_for(recipe: Recipe, bits: Bits, artifact: str) -> None:
    """Raise InputError if an artifact is of other bits than all of a recipe's, which has gates."""
    asked = list(dict.fromkeys(gate.bits for gate in recipe.verify.gates))
    if asked and bits not in recipe.matrix.bits:
        raise InputError(
            f"is of {bits} bits; the gates of recipe {recipe.name} are for {_listed(asked)}, and "
            f"its matrix has {_listed(recipe.matrix.bits)}",
            where=artifact,
            hint="Give the recipe it was made by, or leave out --recipe.",
        )


def _vain(
    gate: CompressionGate, recipe: Recipe, components: Collection[str], planned: Compression | None
) -> tuple[str, str] | None:
    """Why a gate judges nothing, and what to do; None if it judges something."""
    what = f"the gate on {gate.component} at {gate.bits} bits"
    if gate.bits not in recipe.matrix.bits:
        return (
            f"{what} is for no artifact: matrix.bits has {_listed(recipe.matrix.bits)}",
            "Write one of these as the gate's bits, or add its bits to [matrix].",
        )
    level = "generation" if gate.component == PIPELINE else "compression"
    if level not in recipe.verify.levels:
        return (
            f"{what} is judged at level {level}, and verify.levels has "
            f"{_listed(recipe.verify.levels)}",
            f'Add "{level}" to verify.levels, or leave the gate out.',
        )
    if gate.component == PIPELINE:
        return None
    if gate.component not in components:
        return (
            f"{what} is for no model: the checkpoint has {_listed(components)}",
            "Write one of these as the gate's component, or leave the gate out.",
        )
    own = component_bits(gate.component, gate.bits, recipe.compress)
    by_tensor = {t.component for t in recipe.compress.tensors if t.bits != UNCOMPRESSED}
    is_compressed = own != UNCOMPRESSED or gate.component in by_tensor
    if planned is not None:  # tensors may all be too small, or have bits of their own
        is_compressed = bool(planned.methods)
    if gate.bits == UNCOMPRESSED or not is_compressed:
        return (
            f"{what} judges nothing: its weights are not compressed there",
            "What is not compressed has the policy's own gates; leave this one out.",
        )
    return None


def _listed(values: Collection[str]) -> str:
    return ", ".join(values) or "none"
