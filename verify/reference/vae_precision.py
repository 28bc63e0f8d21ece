"""Whether a VAE fits in float16, measured: the largest value that its float16 programs compute.

Float16 ends at 65504. What goes beyond becomes infinite, and the picture black: in the decoder, and
in the encoder, from which image-to-image begins. So both are built in float16 as they would be
shipped, at a small size, and run by the evaluator without rounding; every result that the programs
declare as float16 is looked at. (Group norms divide before they square: `convert.networks.layers`.)

What it proves: that a drawing (waves, stripes, black and white areas) and noise, encoded, and their
latents and noise, decoded, stay within the range. Layers look at neighbours, and group norms at
statistics of the whole, so a larger picture gives values of the same size. Others may give larger
ones: hence the margin. A VAE that fits may still be inexact; level `conversion` has gates for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.latents import SCALING_FACTOR
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.cache import Cache, key_of
from convert.package.mlpackage import Description
from convert.package.native import convert_job
from convert.plan.plan import Job, Plan
from convert.plan.precision import ChosenPrecision
from convert.process.code import code_digest
from convert.process.progress import Progress, Say, Silent, silent
from convert.run.run import checkpoint_digests, discard_unless
from convert.source.download import Snapshot
from convert.values import Bits, Resolution
from convert.weights.compress import NONE
from verify.judge.checks import versions
from verify.runtime.evaluator import Evaluator

LARGEST = 65504.0  # float16's
# A tested picture need not be the worst, and the next one must not be black: two bits are left.
MARGIN = 4.0
SIZE = 256  # pixels along a side, at most


@dataclass(frozen=True)
class Reach:
    """The largest magnitude that a program computes in float16, and where."""

    value: float
    op: str
    given: str  # the input that did it

    @property
    def fits(self) -> bool:
        """Whether float16 holds it, with the margin."""
        return self.value * MARGIN <= LARGEST


def settle_vae_precision(
    plan: Plan,
    source: Snapshot,
    out: Path,
    *,
    progress: Progress | None = None,
    say: Say = silent,
) -> Plan:
    """The plan with the VAE's precision, measured now or taken from `out/.cache`.

    Raises:
        InputError: the VAE cannot be built.
    """
    if plan.precision.value is not None:
        return plan
    jobs = {job.component: job for job in plan.jobs if COMPONENTS[job.component].part == "vae"}
    size = measured_size(next(iter(jobs.values())))
    with discard_unless(out, "precisions"), Cache(out / ".cache") as cache:
        digests = checkpoint_digests(plan, source, cache, progress or Silent())
        key = key_of([_key(plan.checkpoint, digests), sorted(jobs), str(size)])

        def fill(_: Path) -> dict[str, Any]:
            found = reaches(plan.checkpoint, jobs, size, say=say)
            return vars(precision_of(found, size))

        _, facts = cache.entry("precisions", key, fill)
    return plan.with_precision(ChosenPrecision(**facts))


def precision_of(found: Mapping[str, Reach] | InputError, size: Resolution) -> ChosenPrecision:
    """What the measurement of each program comes to.

    Args:
        found: by component; or why they cannot be built in float16.
    """
    if isinstance(found, InputError):
        return ChosenPrecision("float32", f"it cannot be built in float16: {found.problem}")
    component = max(found, key=lambda name: found[name].value)
    most = found[component]
    where = f"`{most.op}` of {COMPONENTS[component].file}, given {most.given}"
    if most.fits:
        return ChosenPrecision(
            "float16",
            f"measured at {size}: the largest value is {most.value:.4g} ({where}); float16 holds "
            f"{LARGEST:.0f}, {LARGEST / most.value:.3g} times that ({MARGIN:g} are asked for)",
        )
    return ChosenPrecision(
        "float32",
        f"measured at {size}: {where}, reaches {most.value:.4g}; float16 ends at {LARGEST:.0f}, "
        f"less than {MARGIN:g} times that",
    )


def measured_size(job: Job) -> Resolution:
    """The size of a job's pictures, no more than `SIZE` along a side."""
    assert job.resolution is not None
    return Resolution(min(job.resolution.width, SIZE), min(job.resolution.height, SIZE))


def reaches(
    checkpoint: Checkpoint, jobs: Mapping[str, Job], size: Resolution, *, say: Say = silent
) -> dict[str, Reach] | InputError:
    """How far the programs of a VAE reach, by component.

    Args:
        jobs: of the VAE's components that are converted, by component.

    Returns:
        An error instead where a weight does not fit in float16.
    """
    found: dict[str, Reach] = {}
    any_job = next(iter(jobs.values()))
    latents: dict[str, Tensor] = {}
    try:
        # Real latents come from the encoder, whether it is converted or not.
        with _program(checkpoint, replace(any_job, component="vae_encoder"), size) as encoder:
            for given, image in images(checkpoint, size).items():
                say(f"largest activations of vae_encoder, {given}")
                reach, outputs = _reach(encoder, {"x": image}, given)
                _keep_larger(found, "vae_encoder", reach)
                latents[f"{given}, encoded"] = outputs["latent"].chunk(2, dim=1)[0]
        shape = next(iter(latents.values())).shape
        latents["noise"] = _noise(tuple(shape), 1) / SCALING_FACTOR
        if "vae_decoder" in jobs:
            with _program(checkpoint, jobs["vae_decoder"], size) as decoder:
                for given, z in latents.items():
                    say(f"largest activations of vae_decoder, {given}")
                    _keep_larger(found, "vae_decoder", _reach(decoder, {"z": z}, given)[0])
    except InputError as error:
        return error
    return {component: found[component] for component in jobs}


def images(checkpoint: Checkpoint, size: Resolution) -> dict[str, Tensor]:
    """What is encoded, by name: float32 [1, 3, H, W] of −1 to 1."""
    channels, height, width = checkpoint.vae.in_channels, size.height, size.width
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)
    waves = [torch.sin(3 * c * rows) * torch.cos(2 * c * columns) for c in range(1, channels + 1)]
    picture = torch.stack(waves)  # [3, H, W]
    picture[:, height // 2 :, : width // 2] = torch.arange(width // 2) // 4 % 2 * 2.0 - 1  # stripes
    picture[:, height // 2 :, width // 2 :] = 1
    disc = ((rows + 0.5).square() + columns.square() < 0.1).float()  # [H, W]
    return {
        "a drawing": (picture * (1 - disc) - disc)[None],
        "noise": _noise((1, channels, height, width), 0).clamp(-1, 1),
    }


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Drawn by numpy, so that it is the same under every torch."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal(shape)).float()


def _keep_larger(found: dict[str, Reach], component: str, reach: Reach) -> None:
    if component not in found or reach.value > found[component].value:
        found[component] = reach


def _reach(
    program: Evaluator, inputs: Mapping[str, Tensor], given: str
) -> tuple[Reach, dict[str, Tensor]]:
    """The largest value of a run that the program declares as float16, and its outputs."""
    most = Reach(0.0, "", given)
    outputs: dict[str, Tensor] = {}
    for op, results in program.steps(inputs):
        for name, type_ in op.outputs:
            if name in program.program.main.outputs:
                outputs[name] = results[name].float()
            if type_.dtype != "fp16":
                continue
            low, high = torch.aminmax(results[name])
            value = max(-float(low), float(high))
            if not value <= most.value:  # not a number is the largest
                most = Reach(value if value == value else float("inf"), op.name, given)
    return most, outputs


@contextmanager
def _program(checkpoint: Checkpoint, job: Job, size: Resolution) -> Iterator[Evaluator]:
    """A component in float16 as it would be shipped, to be run without rounding."""
    small = replace(
        job,
        resolution=size,
        attention=None,
        bits=Bits("16"),
        compression=NONE,
        precision="float16",
        engine="native",
    )
    with TemporaryDirectory(prefix="sdxl-coreml-") as folder:
        package = Path(folder, "model.mlpackage")
        package.mkdir()
        weights = partial(_filled, Path(folder, "weights"))
        about = Description("a measurement", "", "", "", *COMPONENTS[job.component].texts)
        convert_job(checkpoint, small, about, package, weights, silent)
        yield Evaluator(package, mode="fp32")


def _filled(folder: Path, fill: Any) -> tuple[Path, dict[str, str]]:
    folder.mkdir()
    return folder, fill(folder)


def _key(checkpoint: Checkpoint, digests: Mapping[str, str]) -> list[Any]:
    """All that the measurement of a VAE follows from."""
    tensors = [checkpoint.tensor_keys(name, digests) for name in ("vae_encoder", "vae_decoder")]
    config = dict(checkpoint.parts["vae"].config)
    return [code_digest("precision"), versions(), tensors, config]
