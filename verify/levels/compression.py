"""Compressed models: what their weights have become, and what that costs in the outputs.

Compression is not charged to conversion: level `conversion` compares a compressed model with
PyTorch on the model's own decoded weights, level `compression` those with the checkpoint's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.process.progress import Say, silent
from convert.weights.palette import Histogram, fit, fit_groups
from verify.artifact.stored import PALETTE_SLACK, Palettes, compressed_names, palettes_of
from verify.judge.checks import Check, failed, passed
from verify.judge.metrics import Metrics, compare
from verify.judge.policy import Policy
from verify.judge.rules import Rules
from verify.mil import Program
from verify.reference.recording import Case
from verify.reference.reference import Reference
from verify.reports.figures import WORST_WEIGHT
from verify.runtime.evaluator import Evaluator
from verify.weights.parallel import in_threads

PIECE = 1 << 18  # elements that are squared at once


@dataclass(frozen=True)
class Decoded:
    """A weight that the package stores compressed."""

    value: Tensor  # in the package's shape, and in its dtype: half the memory
    palettes: Palettes | None


def compressed_weights(
    program: Program, checkpoint: Checkpoint, component: str
) -> dict[str, Decoded]:
    """Every weight that the package stores compressed, decoded, by the checkpoint's name."""
    evaluator = Evaluator(program)
    return {
        name: Decoded(evaluator.constant(op.outputs[0][0]), palettes_of(op))
        for name, op in compressed_names(program, checkpoint, component).items()
    }


def decoded_cases(
    checkpoint: Checkpoint,
    component: str,
    cases: tuple[Case, ...],
    weights: Mapping[str, Decoded],
    *,
    device: str = "cpu",
    say: Say = silent,
) -> tuple[Case, ...]:
    """The cases with the outputs of PyTorch on the decoded weights, in float32 and float16."""
    values = {name: decoded.value for name, decoded in weights.items()}

    def run(dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
        with Reference(checkpoint, component, dtype=dtype, device=device, weights=values) as model:
            for case in cases:
                say(f"PyTorch on the decoded weights of {component}, {case.name}")
                yield model(case.inputs)

    outputs = list(run(torch.float32))
    half = list(run(torch.float16)) if all(case.fp16 for case in cases) else [{} for _ in cases]
    return tuple(
        replace(case, outputs=out, fp16=fp16)
        for case, out, fp16 in zip(cases, outputs, half, strict=True)
    )


def check_compression(
    checkpoint: Checkpoint,
    component: str,
    weights: Mapping[str, Decoded],
    original: tuple[Case, ...],
    decoded: tuple[Case, ...],
    rules: Rules,
) -> Iterator[Check]:
    """Judge what compression did to the weights and to the outputs.

    Args:
        weights: of `compressed_weights`.
        original: cases with the outputs of the checkpoint's own weights.
        decoded: the same of `decoded_cases`.
        rules: their gates on outputs, the recipe's and the policy's. No universal one is built in,
            so without any the figures are recorded and only what is not finite fails.
    """
    yield from _check_weights(checkpoint, component, weights, rules.policy)
    for case, other in zip(original, decoded, strict=True):
        for output, reference in case.outputs.items():
            metrics = compare(reference, other.outputs[output])
            yield _judge(component, case.name, output, metrics, rules)


def _check_weights(
    checkpoint: Checkpoint, component: str, weights: Mapping[str, Decoded], policy: Policy
) -> Iterator[Check]:
    """The worst weight, and whether every palette is as good as its width allows."""
    tensors = checkpoint.component_tensors(component)

    def look(name: str) -> tuple[float, list[str]]:
        return _looked_at(name, tensors[name].read(np.float16), weights[name])

    looks = in_threads(look, [*weights], [tensors[name].size for name in weights])
    poor = [problem for _, problems in looks for problem in problems]
    if weights:
        shares = {name: share for name, (share, _) in zip(weights, looks, strict=True)}
        name = min(weights, key=shares.__getitem__)
        stored = torch.from_numpy(tensors[name].read(np.float16))
        metrics = compare(stored, weights[name].value.reshape(stored.shape))
        yield _judge(component, f"{WORST_WEIGHT} {len(weights)}", name, metrics, Rules(policy))
    if any(decoded.palettes is not None for decoded in weights.values()):
        gate = f"squared error <= {PALETTE_SLACK} x that of the best palette"
        case = "palettes"
        if poor:
            more = f" (and {len(poor) - 1} more)" if len(poor) > 1 else ""
            yield failed("compression", component, case, gate, poor[0] + more)
        else:
            yield passed("compression", component, case, gate)


def _looked_at(name: str, stored: np.ndarray, decoded: Decoded) -> tuple[float, list[str]]:
    """Signal by noise of a weight, -inf if it is not finite, and which of its palettes are poor."""
    value, palettes = decoded.value.reshape(stored.shape), decoded.palettes
    signal, noise = _powers(stored, value)
    share = -math.inf
    if math.isfinite(noise):
        share = signal / noise if noise else math.inf
    if palettes is None:
        return share, []
    best = _best_errors(stored, palettes)
    errors = np.array([noise])
    if palettes.groups > 1:
        errors = _squared_errors(value.numpy(), stored, palettes.groups)
    poor = []
    for group in np.flatnonzero(~(errors <= PALETTE_SLACK * best)):
        which = f", group {group}" if palettes.groups > 1 else ""
        poor.append(
            f"{name}{which}: squared error {errors[group]:.4g}, "
            f"the best palette's is {best[group]:.4g}"
        )
    return share, poor


def _powers(reference: np.ndarray, value: Tensor) -> tuple[float, float]:
    """Sums of the squares of a weight, and of how it differs; in pieces that stay in the cache."""
    signal = noise = 0.0
    flat, other = torch.from_numpy(reference.reshape(-1)), value.reshape(-1)
    for start in range(0, len(flat), PIECE):
        one = flat[start : start + PIECE].float()
        noise += float(
            (other[start : start + PIECE].float() - one).square_().sum(dtype=torch.float64)
        )
        signal += float(one.square_().sum(dtype=torch.float64))
    return signal, noise


def _best_errors(weight: np.ndarray, palettes: Palettes) -> np.ndarray:
    """The squared errors [groups] of the best palettes for a float16 weight."""
    if palettes.groups == 1:
        histogram = Histogram()
        histogram.add(weight)
        return np.array([fit(histogram, palettes.bits).error(histogram)])
    best = fit_groups(weight, palettes.bits, len(weight) // palettes.groups)
    rows = best.indices.reshape(palettes.groups, -1)
    decoded = np.take_along_axis(best.lut, rows.astype(np.int64), axis=1)
    return _squared_errors(decoded, weight, palettes.groups)


def _squared_errors(decoded: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """Squared errors [groups], of as many runs of output channels."""
    difference = decoded.reshape(groups, -1).astype(np.float64)
    difference -= weight.reshape(groups, -1)
    return np.einsum("gn,gn->g", difference, difference)


def _judge(component: str, case: str, output: str, metrics: Metrics, rules: Rules) -> Check:
    judged = rules.judge("compression", component, metrics, output=output)
    check = Check("compression", component, case, judged.gate, judged.verdict)
    return replace(check, output=output, metrics=metrics, message=judged.message)
