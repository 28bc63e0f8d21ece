"""Sensitivities: how much of the outputs' energy becomes noise when weights are not exact.

With errors δ of a weight, an output y changes by J·δ to first order. For a random vector v of ±1,
the gradient g of v·y by the weight is Jᵀ·v, and the expectation of (g·δ)² over v is |J·δ|²
(Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990). Palettes leave
errors of hardly any correlation, so what is expected is Σ g²·δ² ≈ mean(g²)·|δ|², and mean(g²)
divided by |y|² is the sensitivity, of each output of each recorded denoising step. What they do
have in common with the weights is that they shrink them (`convert.weights.mixed_bits`): what the
outputs feel of that is (g·w)², which comes from the same gradients. It is no small step, and
networks bend: how much of it comes true is asked of the network itself, once, with all weights at
2 bits.

PyTorch's backward pass gives all tensors' gradients at once. Each is reduced to one number and
freed as soon as it is there, so memory stays at the weights and the activations of a small image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache as once
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import Tensor as Weight
from convert.files.cache import Cache, key_of
from convert.files.json_files import read_json
from convert.plan.plan import Plan
from convert.process.code import code_digest
from convert.process.progress import Progress, Say, Silent, silent
from convert.run.run import checkpoint_digests, discard_unless
from convert.source.download import Snapshot
from convert.values import Bits, Resolution
from convert.weights.allocation import Allocation
from convert.weights.compress import ComponentWeights
from convert.weights.mixed_bits import Measured, make_allocation, rounded
from convert.weights.palette import Histogram, fit, palette_errors
from verify.judge.checks import versions
from verify.judge.metrics import compare
from verify.reference.recording import Case, Denoising, record
from verify.reference.reference import Reference

# Random projections of each output, for all recorded cases together. The effect of a weight's
# shrinking is a mean of squares of single numbers, known to √(2/16), about a third: 1.5 dB.
PROJECTIONS = 16
LARGEST = 256  # pixels along a side: weights see the same things in a small image
COARSE = "2"  # bits at which shrinking counts; at fewer, nothing of a network is left
BATCH = 1 << 26  # weights whose palettes' errors are kept together: some seconds of work
FILE = "measured.json"

# (what, how) → what `how` measured, now or before; so an interrupted measurement goes on.
Keep = Callable[[str, Callable[[], Any]], Any]


def _forget(what: str, measure: Callable[[], Any]) -> Any:
    return measure()


@dataclass
class _Sums:
    """What gradients of a weight come to, until it is taken."""

    squares: float = 0.0
    drift: float = 0.0

    def take(self) -> tuple[float, float]:
        """The two sums, which begin at zero again."""
        found = self.squares, self.drift
        self.squares = self.drift = 0.0
        return found


@dataclass(frozen=True)
class WeightSensitivity:
    """What each recorded output feels of a weight; see `convert.weights.mixed_bits.Measured`."""

    sensitivities: tuple[float, ...]
    energy: float
    drifts: tuple[float, ...]


def _watch(parameters: Mapping[str, Tensor]) -> dict[str, _Sums]:
    """Sums of (g·g) and (g·w)² of these parameters; no other gradients are computed.

    Each gradient is reduced and freed by a hook as soon as it is there.
    """
    found: dict[str, _Sums] = {}
    for name, parameter in parameters.items():
        found[name] = _Sums()
        parameter.requires_grad_(True)
        parameter.register_post_accumulate_grad_hook(_hook(found[name]))
    return found


def _hook(sums: _Sums) -> Callable[[Tensor], None]:
    def reduce(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        sums.squares += float(torch.linalg.vector_norm(gradient)) ** 2
        sums.drift += float(torch.dot(gradient.reshape(-1), parameter.detach().reshape(-1))) ** 2
        parameter.grad = None

    return reduce


def sensitivities(
    checkpoint: Checkpoint,
    weights: ComponentWeights,
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    say: Say = silent,
    keep: Keep = _forget,
) -> dict[str, WeightSensitivity]:
    """What every weight of a component that can be compressed means to each output, by name.

    Args:
        cases: what the component is given, recorded; their outputs are computed anew. Those that
            `keep` has are not asked for.
        keep: remembers each case.
    """
    component, tensors = weights.component, weights.tensors
    count = keep("cases", lambda: len(cases))
    projections = max(2, math.ceil(PROJECTIONS / count))
    with ExitStack() as stack:

        @once
        def watched() -> tuple[Reference, dict[str, float], dict[str, _Sums]]:
            model = stack.enter_context(Reference(checkpoint, component, device=device))
            own = model.parameters()
            for parameter in own.values():
                parameter.requires_grad_(False)
            named = {name: own[name] for name in weights.compressible}
            energies = {n: float(torch.linalg.vector_norm(p)) ** 2 for n, p in named.items()}
            return model, energies, _watch(named)

        def sums_of(number: int) -> dict[str, Any]:
            case, (model, energies, sums) = cases[number], watched()
            say(f"sensitivities of {component}, {case.name}")
            outputs = [y for _, y in sorted(model.differentiable(case.inputs).items())]
            of_outputs = []
            for place, output in enumerate(outputs):
                for draw in range(projections):
                    generator = np.random.Generator(np.random.PCG64([number, draw, place]))
                    more = place + 1 < len(outputs) or draw + 1 < projections
                    _projection(output, generator).backward(retain_graph=more)
                of_outputs.append({name: of.take() for name, of in sums.items()})
            return {"energies": energies, "outputs": of_outputs}

        found = [keep(f"case {number}", partial(sums_of, number)) for number in range(count)]
    outputs = [of for case in found for of in case["outputs"]]
    return {
        name: WeightSensitivity(
            tuple(rounded(of[name][0] / tensors[name].size / projections) for of in outputs),
            rounded(energy),
            tuple(rounded(of[name][1] / projections) for of in outputs),
        )
        for name, energy in found[0]["energies"].items()
    }


def _projection(output: Tensor, generator: np.random.Generator) -> Tensor:
    """The product of an output with a random vector of ±1, divided by the output's length.

    Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990: the
    mean of such a product's squared gradient is that of the whole output.
    """
    signs = generator.integers(0, 2, tuple(output.shape)).astype(np.float32) * 2 - 1
    length = torch.linalg.vector_norm(output.detach())
    return (output * torch.from_numpy(signs).to(output.device)).sum() / length


def measure(
    checkpoint: Checkpoint,
    weights: ComponentWeights,
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    say: Say = silent,
    keep: Keep = _forget,
) -> dict[str, Measured]:
    """Sensitivity, drift and palettes' errors of every weight that can be compressed, by name.

    Args:
        cases: as `sensitivities` takes them.
        keep: remembers each case, each batch of palettes, and the error at `COARSE` bits.
    """
    found = sensitivities(checkpoint, weights, cases, device=device, say=say, keep=keep)
    say(f"{weights.component} at {COARSE} bits")
    true = keep("error", lambda: _error_of(checkpoint, weights, cases, device))
    say(f"palettes of {weights.component}")
    tensors = {name: weights.tensors[name] for name in found}

    def errors_of(names: Sequence[str]) -> dict[str, dict[str, float]]:
        found = {name: palette_errors(tensors[name]) for name in names}
        return {n: {bits: rounded(e) for bits, e in of.items()} for n, of in found.items()}

    errors: dict[str, dict[str, float]] = {}
    for number, names in enumerate(_batches(tensors)):
        errors |= keep(f"palettes {number}", partial(errors_of, names))
    measured = {
        name: Measured(sums.sensitivities, errors[name], sums.energy, sums.drifts)
        for name, sums in found.items()
    }
    bend = _bend(measured.values(), true)
    return {
        name: replace(m, drifts=tuple(rounded(drift * bend) for drift in m.drifts))
        for name, m in measured.items()
    }


def _batches(tensors: Mapping[str, Weight]) -> Iterator[list[str]]:
    """The names in runs of tensors that have about `BATCH` weights together."""
    names: list[str] = []
    for name in tensors:
        names.append(name)
        if sum(tensors[n].size for n in names) >= BATCH:
            yield names
            names = []
    if names:
        yield names


def _bend(measured: Collection[Measured], true: float) -> float:
    """What all drifts are to be multiplied by so that they and the noise make the true error."""
    noise = math.fsum(fmean(replace(m, drifts=()).expected(COARSE)) for m in measured)
    drift = math.fsum(fmean(m.expected(COARSE)) for m in measured) - noise
    return max(true - noise, 0.0) / drift if drift > 0 else 1.0


def _error_of(
    checkpoint: Checkpoint, weights: ComponentWeights, cases: Sequence[Case], device: str
) -> float:
    """Relative squared error with all weights at `COARSE` bits, the mean over outputs."""
    errors = []
    with Reference(checkpoint, weights.component, device=device) as model, torch.no_grad():
        own = model.parameters()
        for name, tensor in weights.compressible.items():
            weight = tensor.read(np.float16)
            histogram = Histogram()
            histogram.add(weight)
            palette = fit(histogram, int(COARSE), thorough=False)
            decoded = torch.from_numpy(palette.lut[palette.indices(weight)])
            own[name].copy_(decoded.reshape(own[name].shape))
        for case in cases:
            outputs = model(case.inputs)
            errors += [
                10 ** (-compare(expected, outputs[name]).snr_db / 10)
                for name, expected in case.outputs.items()
            ]
    return fmean(errors)


def calibrate(
    plan: Plan,
    source: Snapshot,
    out: Path,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Say = silent,
) -> Plan:
    """The plan with the widths of its mixed bits, measured now or taken from `out/.cache`.

    Whatever ends it, what was measured until then is kept there.

    Raises:
        InputError: the libraries cannot use the checkpoint, or its outputs are not finite.
    """
    with discard_unless(out, "calibrations"), Cache(out / ".cache") as cache:
        # The UNet's inputs come from the text encoders, whether these are converted or not.
        digests = checkpoint_digests(plan, source, cache, progress or Silent(), whole=True)
        measuring = _Measuring(plan, digests, cache, device, say)
        mixed = {job.component for job in plan.jobs if job.bits in plan.unmeasured}
        measured = {}
        for component, weights in plan.weights.items():
            if component in mixed:
                measured[component] = measuring.measured(weights)
    allocations: dict[Bits, Allocation] = {}
    for bits in plan.unmeasured:
        found = {j.component: measured[j.component] for j in plan.jobs if j.bits == bits}
        target = plan.recipe.target.deployment
        allocations[bits] = make_allocation(plan.weights, bits, target, found)
    return plan.with_allocations({**plan.allocations, **allocations})


@dataclass(frozen=True)
class _Measuring:
    """How the components of a plan are measured, and where that is kept."""

    plan: Plan
    digests: Mapping[str, str]  # of the checkpoint's files
    cache: Cache
    device: str
    say: Say

    def measured(self, weights: ComponentWeights) -> dict[str, Measured]:
        """What `measure` says of a component, now or before."""
        return measure(
            self.plan.checkpoint,
            weights,
            _Later(partial(self._recorded, weights.component)),
            device=self.device,
            say=self.say,
            keep=partial(self._keep, self._key(weights.component)),
        )

    def _recorded(self, component: str) -> tuple[Case, ...]:
        return record(
            self.plan.checkpoint,
            [component],
            resolution=_calibration_size(self.plan),
            denoising=Denoising.of(self.plan.recipe.verify),
            device=self.device,
            say=self.say,
        ).cases[component]

    def _key(self, component: str) -> list[Any]:
        """All that the measurements of a component follow from."""
        settings = self.plan.recipe.verify
        # The UNet's inputs come from the text encoders, so every file counts.
        given = [settings.prompts[0], settings.negative_prompt, settings.guidance]
        code = [code_digest("calibrate"), versions()]
        tensors = self.plan.checkpoint.tensor_keys(component, self.digests)
        size = str(_calibration_size(self.plan))
        return [code, component, size, self.device, given, self.digests, tensors]

    def _keep(self, key: list[Any], what: str, measured: Callable[[], Any]) -> Any:
        def fill(folder: Path) -> None:
            (folder / FILE).write_text(json.dumps(measured(), sort_keys=True), "utf-8")

        path, _ = self.cache.entry("calibrations", key_of([*key, what]), fill)
        return read_json(path / FILE)


class _Later(Sequence[Case]):
    """Cases that are recorded when one is asked for."""

    def __init__(self, recorded: Callable[[], Sequence[Case]]) -> None:
        self._cases = once(recorded)

    def __len__(self) -> int:
        return len(self._cases())

    def __getitem__(self, index: Any) -> Any:
        return self._cases()[index]


def _calibration_size(plan: Plan) -> Resolution:
    """The first artifact's resolution, no more than `LARGEST` along a side."""
    first = plan.artifacts[0].artifact.resolution
    return Resolution(min(first.width, LARGEST), min(first.height, LARGEST))
