"""Mixed bits: a width for each tensor, so that their average is kept and the error is least.

The average counts all that is stored of a component's compressible tensors, which are the weights
of its convolutions and linear layers but the smallest (`convert.weights.compress.is_compressible`):

    average = 8 · bytes of indices, palettes, records and padding in the weight file ÷ weights

The expected error of a tensor, the share of an output's energy that becomes noise, has two parts.
The best palette's entries are the means of what they stand for, so with a squared error D it is
weights that have shrunk by the share D / |w|², and noise without correlation to them, of energy
D · (1 − D / |w|²). The noise costs its energy times the tensor's sensitivity; the shrinking, which
counts at few bits, its square times what the outputs feel of the whole tensor.
Both come from `verify.reference.calibration`, for each recorded output by itself, so that no output
pays for the others: the widths are those of the least sum over outputs of error to the power of
`POWER`, found from the least sum of errors by steps along its derivative while they help.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from convert.errors import InputError
from convert.values import Bits, DeploymentTarget
from convert.weights.allocation import Allocation, Allotted
from convert.weights.compress import (
    UNCOMPRESSED,
    ComponentWeights,
    budget,
    options,
)

# Above 1, outputs that lose more count more. From 1.2 on the embedded checkpoint's text encoders
# have what they need; more only costs the mean output of its UNet.
POWER = 1.25
DIGITS = 4  # significant, so that a file says all that an allocation was made from


@dataclass(frozen=True)
class Measured:
    """What is known of a tensor before its width is chosen.

    Attributes:
        sensitivities: relative squared error for each unit of the weights' noise, by output.
        errors: squared errors of the best palettes, by bits.
        energy: the sum of squared weights.
        drifts: relative squared change if the weights vanished, from small steps, by output.
    """

    sensitivities: tuple[float, ...]
    errors: Mapping[str, float]
    energy: float = math.inf
    drifts: tuple[float, ...] = ()

    @property
    def sensitivity(self) -> float:
        """The mean over outputs."""
        return fmean(self.sensitivities)

    def expected(self, bits: str) -> tuple[float, ...]:
        """The expected share of noise in the energy of each output.

        Integers, which only an override asks for, count as palettes of 8 and 4 bits.
        """
        bits = bits.removeprefix("int")
        error = 0.0 if bits == UNCOMPRESSED else self.errors[bits]
        if error == 0:
            return (0.0,) * len(self.sensitivities)
        shrunk = min(error / self.energy, 1.0)
        drifts = self.drifts or (0.0,) * len(self.sensitivities)
        return tuple(
            sensitivity * error * (1 - shrunk) + shrunk**2 * drift
            for sensitivity, drift in zip(self.sensitivities, drifts, strict=True)
        )


@dataclass(frozen=True)
class Option:
    """One way to store a tensor."""

    bits: str
    bytes: int
    error: float


def _require_reachable(
    sizes: Mapping[str, Mapping[str, int]], limit: int, component: str, bits: Bits
) -> None:
    """Raise InputError if even the narrowest widths take more than the average allows."""
    least = sum(min(of.values()) for of in sizes.values())
    if least > limit:
        average = float(bits.removeprefix("mixed-"))
        smallest = math.ceil(10 * average * least / max(limit, 1)) / 10
        raise InputError(
            f"{component} cannot average {average} bits: its narrowest palettes take more",
            where=bits,
            hint=f"The smallest is mixed-{smallest:.1f}.",
        )


def allocate(choices: Mapping[str, Sequence[Option]], limit: int) -> dict[str, str]:
    """The bits of each tensor with the least sum of errors in at most `limit` bytes.

    The steps along the lower convex hulls of error against bytes, steepest first, are optimal for
    every limit that they meet exactly (Lagrange; Shoham and Gersho, "Efficient bit allocation for
    an arbitrary set of quantizers", 1988). Where a step does not fit any more, what is left is
    filled with the best that does. Of equal steps the first by name is taken.

    Args:
        choices: at least one option for each tensor; the cheapest must fit together.
    """
    names = sorted(choices)
    chosen = {name: min(choices[name], key=lambda o: (o.bytes, o.error)) for name in names}
    left = limit - sum(option.bytes for option in chosen.values())
    assert left >= 0, "the cheapest do not fit"
    steps = []
    for name in names:
        hull = _lower_hull(choices[name])
        for number, (one, other) in enumerate(pairwise(hull)):
            slope = (one.error - other.error) / (other.bytes - one.bytes)
            steps.append((-slope, name, number, other))
    for _, name, _, option in sorted(steps, key=lambda step: step[:3]):
        more = option.bytes - chosen[name].bytes
        if more <= left and option.error < chosen[name].error:
            chosen[name], left = option, left - more
    while gains := [
        (chosen[name].error - option.error, name, option)
        for name in names
        for option in choices[name]
        if option.error < chosen[name].error and option.bytes - chosen[name].bytes <= left
    ]:
        _, name, option = min(gains, key=lambda g: (-g[0], g[1], g[2].bytes))
        left -= option.bytes - chosen[name].bytes
        chosen[name] = option
    return {name: chosen[name].bits for name in names}


def _lower_hull(points: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of error against bytes, from the cheapest on."""
    hull: list[Option] = []
    for point in sorted(points, key=lambda o: (o.bytes, o.error)):
        if hull and point.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(one: Option, other: Option) -> float:
    """The fall of the error for each byte."""
    return (one.error - other.error) / max(other.bytes - one.bytes, 1)


def rounded(value: float) -> float:
    """A measured value with as many digits as are kept, and as matter."""
    return float(f"{value:.{DIGITS - 1}e}")


def provisional(
    sizes: Mapping[str, Mapping[str, int]], limit: int, component: str, bits: Bits
) -> dict[str, str]:
    """Widths for a plan's bytes and seconds, before anything is measured: all weights alike.

    Args:
        sizes: of `convert.weights.compress.options`.
        limit: of `convert.weights.compress.budget`.

    Raises:
        InputError: an average below the narrowest widths.
    """
    _require_reachable(sizes, limit, component, bits)
    choices = {
        name: [Option(width, n, max(of.values()) * 4.0 ** -float(width)) for width, n in of.items()]
        if len(of) > 1
        else [Option(width, n, 0.0) for width, n in of.items()]
        for name, of in sizes.items()
    }
    return allocate(choices, limit)


def make_allocation(
    weights: Mapping[str, ComponentWeights],
    bits: Bits,
    target: DeploymentTarget,
    measured: Mapping[str, Mapping[str, Measured]],
) -> Allocation:
    """The best widths of the components that were measured.

    Raises:
        InputError: an average below the narrowest widths.
    """
    averages, components = {}, {}
    for component, facts in measured.items():
        tensors, limit = weights[component].tensors, budget(weights[component], bits)
        sizes = options(weights[component], target)
        _require_reachable(sizes, limit, component, bits)
        widths = least_errors(sizes, facts, limit)
        stored = sum(sizes[name][width] for name, width in widths.items())
        averages[component] = round(8 * stored / sum(tensors[n].size for n in widths), 4)
        components[component] = {
            name: Allotted(
                tensors[name].shape,
                width,
                rounded(facts[name].sensitivity),
                rounded(fmean(facts[name].expected(width))),
            )
            for name, width in widths.items()
        }
    return Allocation(bits, averages, components)


def least_errors(
    sizes: Mapping[str, Mapping[str, int]], facts: Mapping[str, Measured], limit: int
) -> dict[str, str]:
    """The bits of each tensor with the least sum over outputs of error to the power of `POWER`."""
    expected = {n: {width: facts[n].expected(width) for width in of} for n, of in sizes.items()}
    counts = {len(facts[name].sensitivities) for name in sizes}
    assert len(counts) <= 1, "every tensor is measured by the same outputs"
    weights = (1.0,) * max(counts, default=0)
    best: dict[str, str] = {}
    least = math.inf
    while True:
        choices = {
            name: [
                Option(width, n, math.fsum(map(operator.mul, weights, expected[name][width])))
                for width, n in of.items()
            ]
            for name, of in sizes.items()
        }
        widths = allocate(choices, limit)
        felt = zip(*(expected[name][width] for name, width in widths.items()), strict=True)
        shares = [math.fsum(of) for of in felt]
        error = math.fsum(share**POWER for share in shares)
        if error >= least:
            return best
        best, least = widths, error
        largest = max(shares, default=0.0) or 1.0
        weights = tuple((share / largest) ** (POWER - 1) for share in shares)
