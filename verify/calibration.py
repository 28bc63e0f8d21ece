"""Sensitivities: how much of the outputs' energy becomes noise when weights are not exact.

With errors δ of a weight, an output y changes by J·δ to first order. For a random vector v of ±1,
the gradient g of v·y by the weight is Jᵀ·v, and the expectation of (g·δ)² over v is |J·δ|²
(Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990). Palettes leave
errors of hardly any correlation, so what is expected is Σ g²·δ² ≈ mean(g²)·|δ|², and mean(g²),
averaged over recorded denoising steps and each divided by |y|², is the sensitivity.

PyTorch's backward pass gives all tensors' gradients at once. Each is reduced to one number and
freed as soon as it is there, so memory stays at the weights and the activations of a small image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from convert.plan import Plan
from convert.progress import Progress, Silent
from convert.run import checkpoint_digests
from convert.values import Bits, Resolution, is_mixed
from verify.recording import Case, record
from verify.reference import Reference

METHOD = 1  # of measuring; part of the cache's key
PROBES = 2  # random vectors for each recorded case
LARGEST = 256  # pixels along a side: weights see the same things in a small image
FILE = "measured.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Sums:
    """Sums of squared gradients by tensor, filled by hooks while gradients appear."""

    squares: dict[str, float]

    def watch(self, parameters: Mapping[str, Tensor]) -> None:
        """Reduce and free each gradient of these parameters; no others are computed."""
        for name, parameter in parameters.items():
            self.squares[name] = 0.0
            parameter.requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def reduce(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.squares[name] += float(torch.linalg.vector_norm(parameter.grad)) ** 2
            parameter.grad = None

        return reduce


def sensitivities(
    checkpoint: Checkpoint,
    component: str,
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> dict[str, float]:
    """The sensitivity of every weight of a component that can be compressed, by name.

    Args:
        cases: what the component is given, recorded; their outputs are computed anew.
    """
    tensors = checkpoint.component_tensors(component)
    sums = _Sums({})
    with Reference(checkpoint, component, device=device) as model:
        own = model.parameters()
        for parameter in own.values():
            parameter.requires_grad_(False)
        sums.watch({name: own[name] for name, t in tensors.items() if is_compressible(t)})
        for number, case in enumerate(cases):
            say(f"sensitivities of {component}, {case.name}")
            outputs = model.differentiable(case.inputs)
            for probe in range(PROBES):
                generator = np.random.Generator(np.random.PCG64([number, probe]))
                product = sum(_probe(y, generator) for _, y in sorted(outputs.items()))
                assert isinstance(product, Tensor)
                product.backward(retain_graph=probe + 1 < PROBES)
    count = len(cases) * PROBES
    return {
        name: rounded(square / tensors[name].size / count) for name, square in sums.squares.items()
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
    """Sensitivity and palettes' errors of every weight that can be compressed, by name."""
    found = sensitivities(checkpoint, component, cases, device=device, say=say)
    say(f"palettes of {component}")
    tensors = checkpoint.component_tensors(component)
    return {name: Measured(s, palette_errors(tensors[name])) for name, s in found.items()}


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
