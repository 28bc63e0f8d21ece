"""Sensitivities: how much of the outputs' energy becomes noise when weights are not exact.

With errors δ of a weight, an output y changes by J·δ to first order. For a random vector v of ±1,
the gradient g of v·y by the weight is Jᵀ·v, and the expectation of (g·δ)² over v is |J·δ|²
(Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990). Palettes leave
errors of hardly any correlation, so what is expected is Σ g²·δ² ≈ mean(g²)·|δ|², and mean(g²),
averaged over recorded denoising steps and each divided by |y|², is the sensitivity. What they do
have in common with the weights is that they shrink them (`convert.mixed_bits`): what the outputs
feel of that is (g·w)², which comes from the same gradients. It is no small step, and networks bend:
how much of it comes true is asked of the network itself, once, with all weights at 2 bits.

PyTorch's backward pass gives all tensors' gradients at once. Each is reduced to one number and
freed as soon as it is there, so memory stays at the weights and the activations of a small image.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert.allocation import Allocation
from convert.cache import Cache, key_of
from convert.checkpoint import Checkpoint
from convert.compress import is_compressible
from convert.download import Snapshot
from convert.methods import component_bits
from convert.mixed_bits import Measured, make_allocation, palette_errors, rounded
from convert.palette import Histogram, fit
from convert.plan import Plan
from convert.progress import Progress, Silent
from convert.run import checkpoint_digests
from convert.values import Bits, Resolution, is_mixed
from verify.metrics import compare
from verify.recording import Case, record
from verify.reference import Reference

METHOD = 2  # of measuring; part of the cache's key
# Random vectors for all recorded cases together: what is felt of a weight's shrinking is a mean of
# squares of single numbers, known to √(2/16), about a third, which is 1.5 dB.
PROBES = 16
LARGEST = 256  # pixels along a side: weights see the same things in a small image
COARSE = "2"  # bits at which shrinking counts; at fewer, nothing of a network is left
FILE = "measured.json"

Say = Callable[[str], None]


@dataclass
class Felt:
    """What the outputs feel of a weight; see `Measured`, and the sums while gradients appear."""

    sensitivity: float = 0.0
    energy: float = 0.0
    drift: float = 0.0


def _watch(parameters: Mapping[str, Tensor]) -> dict[str, Felt]:
    """Sums of (g·g) and (g·w)² of these parameters; no other gradients are computed.

    Each gradient is reduced and freed by a hook as soon as it is there.
    """
    found: dict[str, Felt] = {}
    for name, parameter in parameters.items():
        found[name] = Felt(energy=float(torch.linalg.vector_norm(parameter)) ** 2)
        parameter.requires_grad_(True)
        parameter.register_post_accumulate_grad_hook(_hook(found[name]))
    return found


def _hook(felt: Felt) -> Callable[[Tensor], None]:
    def reduce(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        felt.sensitivity += float(torch.linalg.vector_norm(gradient)) ** 2
        felt.drift += float(torch.dot(gradient.reshape(-1), parameter.detach().reshape(-1))) ** 2
        parameter.grad = None

    return reduce


def sensitivities(
    checkpoint: Checkpoint,
    component: str,
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> dict[str, Felt]:
    """Sensitivity, energy and drift of every weight of a component that can be compressed, by name.

    Args:
        cases: what the component is given, recorded; their outputs are computed anew.
    """
    tensors = checkpoint.component_tensors(component)
    with Reference(checkpoint, component, device=device) as model:
        own = model.parameters()
        for parameter in own.values():
            parameter.requires_grad_(False)
        sums = _watch({name: own[name] for name, t in tensors.items() if is_compressible(t)})
        probes = max(2, math.ceil(PROBES / len(cases)))
        for number, case in enumerate(cases):
            say(f"sensitivities of {component}, {case.name}")
            outputs = model.differentiable(case.inputs)
            for probe in range(probes):
                generator = np.random.Generator(np.random.PCG64([number, probe]))
                product = sum(_probe(y, generator) for _, y in sorted(outputs.items()))
                assert isinstance(product, Tensor)
                product.backward(retain_graph=probe + 1 < probes)
    count = len(cases) * probes
    return {
        name: Felt(
            rounded(felt.sensitivity / tensors[name].size / count),
            rounded(felt.energy),
            rounded(felt.drift / count),
        )
        for name, felt in sums.items()
    }


def _probe(output: Tensor, generator: np.random.Generator) -> Tensor:
    """The product of an output with a random vector of ±1, divided by the output's length."""
    signs = generator.integers(0, 2, tuple(output.shape)).astype(np.float32) * 2 - 1
    length = torch.linalg.vector_norm(output.detach())
    return (output * torch.from_numpy(signs).to(output.device)).sum() / length


def measure(
    checkpoint: Checkpoint,
    component: str,
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> dict[str, Measured]:
    """Sensitivity, drift and palettes' errors of every weight that can be compressed, by name."""
    found = sensitivities(checkpoint, component, cases, device=device, say=say)
    say(f"palettes of {component}")
    tensors = checkpoint.component_tensors(component)
    measured = {
        name: Measured(felt.sensitivity, palette_errors(tensors[name]), felt.energy, felt.drift)
        for name, felt in found.items()
    }
    say(f"{component} at {COARSE} bits")
    true = _error_of(checkpoint, component, cases, list(found), device)
    bend = _bend(measured.values(), true)
    return {name: replace(m, drift=rounded(m.drift * bend)) for name, m in measured.items()}


def _bend(measured: Collection[Measured], true: float) -> float:
    """What all drifts are to be multiplied by so that they and the noise make the true error."""
    noise = sum(replace(m, drift=0.0).expected(COARSE) for m in measured)
    drift = sum(m.expected(COARSE) for m in measured) - noise
    return max(true - noise, 0.0) / drift if drift > 0 else 1.0


def _error_of(
    checkpoint: Checkpoint, component: str, cases: Sequence[Case], names: list[str], device: str
) -> float:
    """Relative squared error of the outputs with all weights at `COARSE` bits, mean over cases."""
    tensors = checkpoint.component_tensors(component)
    total = 0.0
    with Reference(checkpoint, component, device=device) as model, torch.no_grad():
        own = model.parameters()
        for name in names:
            weight = tensors[name].read(np.float16)
            histogram = Histogram()
            histogram.add(weight)
            palette = fit(histogram, int(COARSE), thorough=False)
            decoded = torch.from_numpy(palette.lut[palette.indices(weight)])
            own[name].copy_(decoded.reshape(own[name].shape))
        for case in cases:
            outputs = model(case.inputs)
            total += sum(
                10 ** (-compare(expected, outputs[name]).snr_db / 10)
                for name, expected in case.outputs.items()
            )
    return total / len(cases)


def calibrate(
    plan: Plan,
    source: Snapshot,
    out: Path,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> Plan:
    """The plan with the widths of its mixed bits, measured now or taken from `out/.cache`.

    Raises:
        InputError: the libraries cannot use the checkpoint, or its outputs are not finite.
    """
    wanted = {
        component: None
        for bits in plan.unmeasured
        for component in plan.artifacts[0].jobs
        if is_mixed(component_bits(component, bits, plan.recipe.compress))
    }
    is_new = not out.exists()
    try:
        with Cache(out / ".cache") as cache:
            digests = checkpoint_digests(plan, source, cache, progress or Silent())
            size = _probe_size(plan)
            measured = {
                component: _measured(plan, component, size, digests, cache, device, say)
                for component in wanted
            }
    except BaseException:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    recipe = plan.recipe
    allocations: dict[Bits, Allocation] = {
        bits: make_allocation(
            plan.checkpoint,
            bits,
            recipe.target.deployment,
            recipe.compress,
            {c: m for c, m in measured.items() if component_bits(c, bits, recipe.compress) == bits},
        )
        for bits in plan.unmeasured
    }
    return plan.with_allocations({**plan.allocations, **allocations})


def _measured(
    plan: Plan,
    component: str,
    size: Resolution,
    digests: Mapping[str, str],
    cache: Cache,
    device: str,
    say: Say,
) -> dict[str, Measured]:
    checkpoint, settings = plan.checkpoint, plan.recipe.verify

    def fill(folder: Path) -> None:
        recording = record(
            checkpoint,
            [component],
            resolution=size,
            prompt=settings.prompts[0],
            negative_prompt=settings.negative_prompt,
            guidance=settings.guidance,
            device=device,
            progress=say,
        )
        found = measure(checkpoint, component, recording.cases[component], device=device, say=say)
        text = json.dumps({name: vars(facts) for name, facts in found.items()}, sort_keys=True)
        (folder / FILE).write_text(text, "utf-8")

    # The UNet's inputs come from the text encoders, so every file counts.
    given = [settings.prompts[0], settings.negative_prompt, settings.guidance]
    key = key_of([METHOD, PROBES, component, str(size), device, given, digests])
    path, _ = cache.entry("calibrations", key, fill)
    facts = json.loads((path / FILE).read_text("utf-8"))
    return {name: Measured(**values) for name, values in facts.items()}


def _probe_size(plan: Plan) -> Resolution:
    """The first artifact's resolution, no more than `LARGEST` along a side."""
    first = plan.artifacts[0].artifact.resolution
    return Resolution(min(first.width, LARGEST), min(first.height, LARGEST))
