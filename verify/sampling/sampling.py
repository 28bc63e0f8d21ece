"""Whole text-to-image and image-to-image runs, and everything that a replay of one needs.

A run is traced once with PyTorch's networks in float32. Its noise is then replayed into an
artifact's pipeline, whose scheduler is the same code in the same precision, so that only text
encoders, UNet and VAE differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedEmbedding
from convert.checkpoint.pipeline import pipeline_config
from convert.checkpoint.small_files import library_folder
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.process.progress import Say, silent
from convert.recipe.sections import Verify
from convert.values import Resolution
from verify.reference.reference import Reference, quiet
from verify.sampling import schedulers
from verify.sampling.noise import Noise, RecordedNoise
from verify.sampling.pipeline import NetworkFunction, build_pipeline

PipelineKind = Literal["text-to-image", "image-to-image"]
STRENGTH = 0.6  # of image-to-image: enough left to see that the start image got in
RESIDENT = 6 << 30  # bytes of float32 weights that may stay loaded: the text encoders, not the UNet


@dataclass(frozen=True)
class Settings:
    """What one picture is made from, beside the noise."""

    kind: PipelineKind
    prompt: str
    negative_prompt: str
    scheduler: str | None  # the checkpoint's own if None
    steps: int
    guidance: float
    seed: int
    number: int = 1  # of the prompt, from 1
    strength: float | None = None  # of image-to-image

    @property
    def case(self) -> str:
        """Its name in checks and reports."""
        return f"{self.scheduler} {self.kind} {self.number}"


@dataclass(frozen=True)
class NetworkCall:
    """One evaluation of a component: what it was given and gave, under the Core ML names."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Picture:
    """What a run gives."""

    latents: tuple[Tensor, ...]  # after each step, float32 [1, 4, h, w]
    image: np.ndarray  # float32 [H, W, 3] in 0…1
    timesteps: tuple[float, ...]  # of each step
    sigmas: tuple[float, ...]  # of the whole schedule, where the scheduler has them


@dataclass(frozen=True)
class Trace:
    """A reference run with all of its tensors."""

    settings: Settings
    resolution: Resolution
    noise: tuple[Tensor, ...]  # in the order in which it was drawn
    picture: Picture
    # By component; a VAE's have the scale of the checkpoint's own config, see `trace_all`.
    calls: Mapping[str, tuple[NetworkCall, ...]] = field(default_factory=dict)
    start: np.ndarray | None = None  # uint8 [H, W, 3], of image-to-image


def settings_for(
    asked: Verify,
    kinds: Iterable[PipelineKind],
    *,
    seed: int = 0,
    embeddings: Sequence[AppliedEmbedding] = (),
) -> tuple[Settings, ...]:
    """What a recipe's [verify] asks for: every prompt, in every kind.

    Args:
        embeddings: of the checkpoint; the first prompt begins with those that none has.
    """
    prompts = list(asked.prompts)
    written = [f" {text} " for text in (*prompts, asked.negative_prompt)]
    unused = [e.text for e in embeddings if not any(f" {e.text} " in text for text in written)]
    prompts[0] = " ".join([*unused, prompts[0]])
    return tuple(
        Settings(
            kind=kind,
            prompt=prompt,
            negative_prompt=asked.negative_prompt,
            scheduler=asked.scheduler,
            steps=asked.steps,
            guidance=asked.guidance,
            seed=seed + number,
            number=number,
            strength=STRENGTH if kind == "image-to-image" else None,
        )
        for kind in kinds
        for number, prompt in enumerate(prompts, 1)
    )


def kinds_of(components: Iterable[str]) -> tuple[PipelineKind, ...]:
    """What a model with these components can do; a refiner has no text encoder 1."""
    kinds: list[PipelineKind] = []
    if "text_encoder" in components:
        kinds.append("text-to-image")
    if "vae_encoder" in components:
        kinds.append("image-to-image")
    return tuple(kinds)


def evaluations(pipeline: Any, settings: Settings) -> int:
    """How many steps a run takes."""
    return schedulers.evaluations(pipeline.scheduler, settings.steps, settings.strength)


def require_steps(scheduler: Any, settings: Settings) -> None:
    """Raise InputError if a scheduler leaves no step to do."""
    if schedulers.evaluations(scheduler, settings.steps, settings.strength) < 1:
        raise InputError(
            f"{settings.steps} steps at strength {settings.strength} leave nothing to do"
        )


def sample(
    pipeline: Any,
    settings: Settings,
    resolution: Resolution,
    noise: Noise,
    start: np.ndarray | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Picture:
    """Run a pipeline of `verify.sampling.pipeline` once.

    Args:
        start: uint8 [H, W, 3], the image that image-to-image begins with.
        on_step: is told how many steps are done.

    Raises:
        InputError: no step is left to do.
    """
    from PIL import Image

    require_steps(pipeline.scheduler, settings)
    latents: list[Tensor] = []
    timesteps: list[float] = []

    def after(_: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Any]:
        latents.append(values["latents"].float().clone())
        timesteps.append(float(timestep))
        if on_step:
            on_step(step + 1)
        return {}

    options: dict[str, Any] = (
        {"width": resolution.width, "height": resolution.height}
        if start is None
        else {"image": Image.fromarray(start), "strength": settings.strength}
    )
    with quiet(), noise:
        image = pipeline(
            settings.prompt,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            callback_on_step_end=after,
            callback_on_step_end_tensor_inputs=["latents"],
            output_type="np",
            **options,
        ).images[0]
    noise.finish()
    sigmas = getattr(pipeline.scheduler, "sigmas", ())
    return Picture(
        tuple(latents),
        np.asarray(image, np.float32),
        tuple(timesteps),
        tuple(float(sigma) for sigma in sigmas),
    )


def trace_all(
    checkpoint: Checkpoint,
    wanted: Iterable[Settings],
    resolution: Resolution,
    *,
    device: str = "cpu",
    say: Say = silent,
) -> tuple[Trace, ...]:
    """The reference's runs, with PyTorch in float32; one large component in memory at a time.

    Latents are scaled as diffusers' pipelines do it with the checkpoint's own config, not as the
    converted VAE has it folded in, so a mistake in that shows as another picture.

    Raises:
        InputError: the checkpoint cannot be run as a pipeline, or a setting is not known.
    """
    config = pipeline_config(checkpoint, folded=False)
    traces = []
    with ExitStack() as stack:
        references = stack.enter_context(References(checkpoint, device, folded=False))
        folders = {
            name: stack.enter_context(library_folder(checkpoint, name))
            for name in config["pad_tokens"]
        }
        for settings in wanted:
            calls: dict[str, list[NetworkCall]] = {}
            networks = {
                name: _traced(references.network(name), calls.setdefault(name, []))
                for name in checkpoint.components
            }
            start = start_image(resolution) if settings.kind == "image-to-image" else None
            pipeline = build_pipeline(
                networks,
                config,
                folders,
                scheduler=settings.scheduler,
                image_to_image=start is not None,
            )
            noise = Noise(settings.seed)
            picture = sample(
                pipeline, settings, resolution, noise, start, _told(say, "reference", settings)
            )
            found = {name: tuple(made) for name, made in calls.items() if made}
            traces.append(Trace(settings, resolution, tuple(noise.given), picture, found, start))
    return tuple(traces)


def replay(pipeline: Any, trace: Trace, *, name: str = "", say: Say = silent) -> Picture:
    """A traced run once more, with other networks and the same noise.

    Raises:
        CannotExecute: the libraries sample in another way than those that made the trace.
    """
    told = _told(say, name, trace.settings)
    return sample(
        pipeline, trace.settings, trace.resolution, RecordedNoise(trace.noise), trace.start, told
    )


def to_uint8(image: np.ndarray) -> np.ndarray:
    """A picture in 0…1 as a file has it; what is not finite becomes black."""
    return np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)


def _told(say: Say, name: str, settings: Settings) -> Callable[[int], None]:
    return lambda step: say(f"{name} {settings.case}, step {step}")


def start_image(resolution: Resolution) -> np.ndarray:
    """The image that image-to-image begins with: a disc on a sky, uint8 [H, W, 3]."""
    height, width = resolution.height, resolution.width
    y = np.linspace(-1, 1, height)[:, None] * height / min(height, width)
    x = np.linspace(-1, 1, width)[None, :] * width / min(height, width)
    sky = np.stack(np.broadcast_arrays(0.35 + 0.1 * x, 0.5 + 0.2 * y, 0.8 - 0.2 * y), axis=-1)
    edge = np.clip((0.55 - np.hypot(x - 0.1, y + 0.1)) * min(height, width) / 2, 0, 1)[..., None]
    disc = np.array([0.9, 0.35, 0.15])
    return np.round(np.clip(sky * (1 - edge) + disc * edge, 0, 1) * 255).astype(np.uint8)


class References:
    """PyTorch's networks of a checkpoint, loaded when they are called.

    Those that fit into `resident` bytes of float32 weights stay loaded; else the one that has
    waited longest goes. `folded` is that of `verify.reference.reference.Reference`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        *,
        resident: int = RESIDENT,
        folded: bool = True,
    ) -> None:
        self.checkpoint, self.device, self.resident = checkpoint, device, resident
        self.folded = folded
        parts = {c: checkpoint.parts[COMPONENTS[c].part] for c in checkpoint.components}
        self._bytes = {c: 4 * part.size for c, part in parts.items()}
        self._loaded: dict[str, Reference] = {}  # the one that was called last is last

    def __enter__(self) -> References:
        return self

    def __exit__(self, *_: object) -> None:
        for component in list(self._loaded):
            self._free(component)

    def network(self, component: str) -> NetworkFunction:
        """The component as a function with the Core ML interface."""
        return lambda inputs: self._get(component)(inputs)

    def _get(self, component: str) -> Reference:
        if component not in self._loaded:
            room = self.resident - self._bytes[component]
            while self._loaded and sum(self._bytes[name] for name in self._loaded) > room:
                self._free(next(iter(self._loaded)))
            self._loaded[component] = Reference(
                self.checkpoint, component, device=self.device, folded=self.folded
            )
        self._loaded[component] = self._loaded.pop(component)
        return self._loaded[component]

    def _free(self, component: str) -> None:
        self._loaded.pop(component).__exit__(None, None, None)


def _traced(network: NetworkFunction, calls: list[NetworkCall]) -> NetworkFunction:
    """The network, with every call kept; what stays the same from call to call is kept once."""

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = network(inputs)
        before = calls[-1].inputs if calls else {}
        kept = {
            name: before[name]
            if name in before and torch.equal(before[name], value)
            else value.clone()
            for name, value in inputs.items()
        }
        calls.append(NetworkCall(kept, dict(outputs)))
        return outputs

    return run
