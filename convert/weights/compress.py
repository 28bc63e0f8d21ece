"""Compression of weights: which tensors, how, and how many bytes that takes.

The one rule of what an artifact's bits make of a tensor (`choose_method`). The level
`structure` asks it of every tensor that is stored, in words of its own
(`verify/levels/stored_bits.py`), so that it holds of the file and not only of what was meant:

- Weights of convolutions and linear layers are compressed: neither embeddings, norms and biases
  nor tensors of fewer than `SMALLEST` elements.
- `8` … `1`: one palette, or one for each `group_size` output channels; a tensor of no more channels
  than that is one group. A group size that does not divide the channels is refused before any work
  (`choose_methods`): it was asked for, and nothing else is put in its place.
- `int8`: a scale for each output channel.
- `int4`: a scale for each block of `BLOCK` input channels; `int8` where that does not divide them,
  as in the first convolution, which has four or nine.
- `mixed-N.N`: a palette of any width, so that all that is stored averages no more.
- What would take no fewer bytes than the float16 weights stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from convert.checkpoint.tensors import Tensor
from convert.errors import InputError
from convert.values import Bits, DeploymentTarget, targets_for

if TYPE_CHECKING:
    from convert.recipe.sections import TensorBits

UNCOMPRESSED = Bits("16")

# coremltools leaves tensors below this alone, too: the palette would outweigh what it saves.
SMALLEST = 2048  # elements
PALETTES = ("8", "6", "4", "3", "2", "1")
INTEGERS = {"int8": 8, "int4": 4}  # int8 has a scale for each output channel, int4 for each block
METHODS = (*PALETTES, *INTEGERS)
# The oldest targets first that can hold each width.
TARGETS = {width: targets_for(Bits(width)) for width in (UNCOMPRESSED, *METHODS)}
BLOCK = 32  # input channels that share a scale in int4


@dataclass(frozen=True)
class Method:
    """How a tensor's weights are stored.

    Attributes:
        bits: of `METHODS`.
        group_size: successive output channels that share a palette; None: the whole tensor.
    """

    bits: str
    group_size: int | None = None

    def stored_bytes(self, shape: tuple[int, ...], width: int = 2) -> int:
        """Bytes of a tensor of this shape in a weight file, records and padding included.

        Args:
            width: bytes of an entry of a palette, or of a scale.
        """
        size = math.prod(shape)
        if self.bits in INTEGERS:
            bits = INTEGERS[self.bits]
            blocks = shape[1] // BLOCK if bits == 4 else 1
            return _record(size * bits // 8) + _record(width * shape[0] * blocks)
        bits = int(self.bits)
        palettes = 1 if self.group_size is None else shape[0] // self.group_size
        return _record(-(-size * bits // 8)) + _record(palettes * (width << bits))

    def __str__(self) -> str:
        """For people and manifests: `6`, `6 in groups of 16`, `int8`."""
        groups = "" if self.group_size is None else f" in groups of {self.group_size}"
        return f"{self.bits}{groups}"


def is_compressible(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one of those that compression is for, by its name in the network.

    Weights of convolutions and linear layers are, neither embeddings nor norms and biases: those
    are small, and every output depends on them.
    """
    is_weight = len(tensor.shape) > 1 and not name.endswith("_embedding.weight")
    return is_weight and tensor.size >= SMALLEST


def choose_method(
    name: str, tensor: Tensor, bits: str, group_size: int | None = None
) -> Method | None:
    """How a tensor is stored where `bits` is asked for, by the rule above; None: as it is."""
    if bits not in METHODS or not is_compressible(name, tensor):
        return None
    if bits in INTEGERS:
        method = Method("int8" if bits == "int4" and tensor.shape[1] % BLOCK else bits)
    else:
        is_grouped = group_size is not None and tensor.shape[0] > group_size
        method = Method(bits, group_size if is_grouped else None)
    return method if method.stored_bytes(tensor.shape) < plain_bytes(tensor, 2) else None


@dataclass(frozen=True)
class ComponentWeights:
    """One component's tensors and what a recipe asks of them: found once, for all of a plan.

    Attributes:
        tensors: by name.
        compressible: those of them that compression is for, by `is_compressible`.
        asked: the bits of tensors that have their own, by name.
        group_size: output channels that share a palette, where the tensor's own bits say no other.
    """

    component: str
    tensors: Mapping[str, Tensor]
    compressible: Mapping[str, Tensor]
    asked: Mapping[str, TensorBits]
    group_size: int | None

    def own_group_size(self, name: str) -> int | None:
        """The group size of a tensor."""
        own = self.asked.get(name)
        return self.group_size if own is None or own.group_size is None else own.group_size


@dataclass(frozen=True)
class Compression:
    """What happens to the weights of a component: the method of each tensor that is compressed."""

    methods: tuple[tuple[str, Method], ...] = ()  # by the tensor's name, in the order of names

    @classmethod
    def of(cls, methods: Mapping[str, Method | None]) -> Compression:
        """From each tensor's method, by name; with None it stays as it is."""
        return cls(tuple(sorted((n, m) for n, m in methods.items() if m is not None)))

    @classmethod
    def uniform(cls, tensors: Mapping[str, Tensor], bits: str) -> Compression:
        """Give every tensor that can be compressed the same bits."""
        return cls.of({name: choose_method(name, tensor, bits) for name, tensor in tensors.items()})

    @cached_property
    def _by_name(self) -> dict[str, Method]:
        return dict(self.methods)

    def method(self, name: str) -> Method | None:
        """The method of a tensor, by its name; None if it stays as it is."""
        return self._by_name.get(name)

    def stored_bytes(self, tensors: Mapping[str, Tensor], width: int) -> int:
        """Bytes of tensors in a weight file, records and padding included.

        Args:
            tensors: by the names that `methods` has.
            width: bytes of an element that is not compressed, a palette's entry or a scale.
        """
        total = 0
        for name, tensor in tensors.items():
            method = self.method(name)
            total += (
                method.stored_bytes(tensor.shape, width) if method else plain_bytes(tensor, width)
            )
        return total

    def to_json(self) -> dict[str, Any]:
        """The methods by tensor, for keys and manifests."""
        return {name: str(method) for name, method in self.methods}


NONE = Compression()


def choose_methods(
    weights: ComponentWeights, bits: Bits, widths: Mapping[str, str] | None = None
) -> Compression:
    """The methods of a component's tensors in an artifact that is compressed.

    Args:
        bits: of those that have none of their own.
        widths: bits by tensor's name, which come before `bits`; of a mixed allocation.

    Raises:
        InputError: a group size does not divide the output channels of a tensor.
    """
    chosen: dict[str, Method | None] = {}
    for name, tensor in weights.compressible.items():
        own = weights.asked.get(name)
        width = (widths or {}).get(name, bits) if own is None else own.bits
        chosen[name] = choose_method(name, tensor, width, weights.own_group_size(name))
    compression = Compression.of(chosen)
    _require_divisible(weights, compression)
    return compression


def _require_divisible(weights: ComponentWeights, compression: Compression) -> None:
    undivided = {
        name: method.group_size
        for name, method in compression.methods
        if method.bits in PALETTES
        and method.group_size is not None
        and weights.tensors[name].shape[0] % method.group_size
    }
    if not undivided:
        return
    name, size = next(iter(undivided.items()))
    more = f" (and {len(undivided) - 1} more)" if len(undivided) > 1 else ""
    raise InputError(
        f"group_size {size} does not divide the {weights.tensors[name].shape[0]} output channels "
        f"of {weights.component}'s `{name}`{more}",
        hint="Use a group size that divides them, or give the tensor another in a recipe, with "
        "[[compress.tensors]].",
    )


def budget(weights: ComponentWeights, bits: Bits) -> int:
    """Bytes that the tensors that can be compressed may take at an average of `mixed-N.N` bits."""
    average = float(bits.removeprefix("mixed-"))
    return int(average * sum(tensor.size for tensor in weights.compressible.values()) / 8)


def require_average(
    weights: ComponentWeights, compression: Compression, bits: Bits, *, where: object = None
) -> None:
    """Raise InputError if what is stored averages more bits than it is called after.

    So it may with an allocation that was edited, or made for other groups or overrides.

    Args:
        where: the allocation's file, if it has one.
    """
    able, limit = weights.compressible, budget(weights, bits)
    stored = compression.stored_bytes(able, 2)
    if stored > limit:
        average = 8 * stored / sum(tensor.size for tensor in able.values())
        raise InputError(
            f"the widths of {weights.component} average {average:.2f} bits, more than {bits}",
            where=where,
            hint="An allocation counts palettes, too: leave it away to measure anew, or ask for "
            f"mixed-{math.ceil(10 * average) / 10:.1f}.",
        )


def options(weights: ComponentWeights, target: DeploymentTarget) -> dict[str, dict[str, int]]:
    """Bytes by width that the target can hold, for each tensor that can be compressed.

    A tensor that the recipe gives a width of its own has that one alone.
    """
    held = [width for width in (UNCOMPRESSED, *PALETTES) if target in TARGETS[width]]
    found: dict[str, dict[str, int]] = {}
    for name, tensor in weights.compressible.items():
        own, size = weights.asked.get(name), weights.own_group_size(name)
        found[name] = {}
        for width in held if own is None else [own.bits]:
            method = choose_method(name, tensor, width, size)
            if method is not None:
                found[name][width] = method.stored_bytes(tensor.shape)
            elif width == UNCOMPRESSED or own is not None:
                found[name][width] = plain_bytes(tensor, 2)
    return found


def plain_bytes(tensor: Tensor, width: int) -> int:
    """Bytes of a tensor that is not compressed, at `width` bytes an element."""
    return _record(tensor.size * width)


def _record(size: int) -> int:
    return -(-size // 64) * 64 + 64
