"""Inputs and reference outputs of a real denoising run of the reference pipeline.

Random inputs cause false failures and hide real ones. So the prompts are tokenised and encoded, an
image is denoised with classifier-free guidance, decoded and encoded again, all with the reference
in float32, and what each component was given and gave on the way is kept. One run thus pays for
the inputs and for the reference.

Inputs are rounded to float16 before the reference sees them: the values are then the same whether
a model's interface is float16 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.configs import LatentSize
from convert.checkpoint.latents import SCALING_FACTOR
from convert.checkpoint.origin import AppliedEmbedding
from convert.checkpoint.small_files import library_folder
from convert.components import COMPONENTS, MAX_TOKENS
from convert.errors import InputError
from convert.process.interrupts import require_uninterrupted
from convert.process.progress import Say, silent
from convert.values import Resolution
from verify.reference.embeddings import token
from verify.reference.reference import Reference, quiet
from verify.reference.schedule import TIMESTEPS, euler, step

if TYPE_CHECKING:
    from convert.recipe.sections import Verify

WeightsOf = Callable[[str], Mapping[str, Tensor]]

PROMPT = "a photograph of an astronaut riding a horse on the beach, golden hour, highly detailed"
NEGATIVE_PROMPT = "lowres, blurry, watermark, bad anatomy"
EMBEDDED_CASE = "embedding "
EMBEDDED = "{} and a horse, golden hour"
# More than any CLIP tokenizer gets into 75 tokens.
LONG_PROMPT = " ".join(f"{word} and" for word in (PROMPT + ", " + NEGATIVE_PROMPT).split() * 4)
GUIDANCE = 5.0
SMALLEST = Resolution(64, 64)  # for recordings of text encoders, which have no resolution
# Unconditional and conditional, of a refiner's time ids. Source: the defaults of
# `negative_aesthetic_score` and `aesthetic_score` in diffusers' StableDiffusionXLImg2ImgPipeline.
AESTHETIC_SCORES = (2.5, 6.0)
KINDS = ("inputs", "outputs", "fp16")  # of a case's tensors, as `Case` calls them


@dataclass(frozen=True)
class Denoising:
    """What the recorded run makes its image from, and in which steps.

    Attributes:
        seed: of the initial noise, drawn by numpy, so that it is the same under every torch.
        timesteps: in falling order; each is a case of the UNet.

    Raises:
        InputError: timesteps that do not fall.
    """

    prompt: str = PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    guidance: float = GUIDANCE
    seed: int = 0
    timesteps: Sequence[int] = TIMESTEPS

    def __post_init__(self) -> None:
        steps = list(self.timesteps)
        if not steps or steps != sorted(set(steps), reverse=True):
            raise InputError(f"timesteps {steps} do not fall from step to step")

    @classmethod
    def of(cls, asked: Verify) -> Denoising:
        """The run that a recipe's [verify] asks for, with its first prompt."""
        return cls(asked.prompts[0], asked.negative_prompt, asked.guidance)


@dataclass(frozen=True)
class Case:
    """One run of a component: what it is given, and what the references make of it."""

    name: str
    inputs: dict[str, Tensor]  # float16; token ids float32
    outputs: dict[str, Tensor]  # PyTorch float32
    fp16: dict[str, Tensor] = field(default_factory=dict)  # PyTorch float16; the noise floor


@dataclass(frozen=True)
class Recording:
    """The cases of each component, for one checkpoint and one resolution."""

    resolution: Resolution
    cases: Mapping[str, tuple[Case, ...]]

    def tensors(self) -> dict[str, Tensor]:
        """Everything as one flat dict, named component/case/inputs|outputs|fp16/name."""
        return {
            f"{component}/{case.name}/{kind}/{name}": tensor
            for component, cases in self.cases.items()
            for case in cases
            for kind in KINDS
            for name, tensor in getattr(case, kind).items()
        }

    def names(self) -> dict[str, list[str]]:
        """What its cases are called, by component, in their order."""
        return {component: [c.name for c in cases] for component, cases in self.cases.items()}


def case_names(
    component: str,
    timesteps: Sequence[int] = TIMESTEPS,
    embeddings: Sequence[AppliedEmbedding] = (),
) -> tuple[str, ...]:
    """What `record` calls the cases of a component of a checkpoint with these embeddings."""
    own = [embedded_case(one) for one in embeddings if component in one.text_encoders]
    return {
        "text_encoder": ("prompt", "negative prompt", "empty prompt", "full prompt", *own),
        "unet": tuple(f"t={timestep}" for timestep in timesteps),
        "vae_decoder": ("final latents",),
        "vae_encoder": ("decoded image",),
    }[COMPONENTS[component].kind]


def embedded_case(embedding: AppliedEmbedding) -> str:
    """What `record` calls the case of an embedding."""
    return EMBEDDED_CASE + embedding.words[0]


def record(
    checkpoint: Checkpoint,
    components: Collection[str],
    *,
    resolution: Resolution,
    fp16: Collection[str] = (),
    denoising: Denoising | None = None,
    weights: WeightsOf | None = None,
    device: str = "cpu",
    say: Say = silent,
) -> Recording:
    """Run the reference pipeline as far as `components` need it, one component in memory at a time.

    Args:
        components: those whose cases are wanted; text encoders alone need no denoising.
        resolution: of the image.
        fp16: components to run in PyTorch float16 as well, on the same inputs.
        denoising: what is denoised and how; the defaults if None.
        weights: gives a component's values that take the place of the checkpoint's, as `Reference`
            has them; asked for each time that one is loaded, so that no more are held.

    Raises:
        InputError: the libraries cannot use the checkpoint, or its own outputs are not finite.
    """
    denoise = any(COMPONENTS[name].has_resolution for name in components)
    denoising = denoising or Denoising()
    run = _Run(checkpoint, resolution, denoising, weights, device, say)
    if denoise:
        checkpoint.vae.latent_size(resolution)  # or an error before anything is loaded
    texts = {"prompt": denoising.prompt, "negative prompt": denoising.negative_prompt}
    cases: dict[str, tuple[Case, ...]] = {}
    for encoder in checkpoint.text_encoders:
        more = {"empty prompt": "", "full prompt": LONG_PROMPT} if encoder in components else {}
        if denoise or more:
            cases[encoder] = run.text_encoder(encoder, texts | more, embeddings=bool(more))
    if denoise:
        cases["unet"], latents = run.unet(cases)
    if any(COMPONENTS[name].part == "vae" for name in components):
        cases["vae_decoder"], image = run.vae_decoder(latents)
        if "vae_encoder" in components:
            cases["vae_encoder"] = run.vae_encoder(image)
    wanted = {name: found for name, found in cases.items() if name in components}
    for name in [n for n in wanted if n in fp16]:
        wanted[name] = run.fp16(name, wanted[name])
    return Recording(resolution, wanted)


@dataclass(frozen=True)
class _Run:
    checkpoint: Checkpoint
    resolution: Resolution
    denoising: Denoising
    weights: WeightsOf | None
    device: str
    say: Say

    def reference(self, component: str, dtype: torch.dtype = torch.float32) -> Reference:
        own = None if self.weights is None else self.weights(component)
        return Reference(self.checkpoint, component, dtype=dtype, device=self.device, weights=own)

    def _broken(self) -> str:
        """What may be at fault for values that are not finite."""
        loras = [lora.file.rpartition("/")[2] for lora in self.checkpoint.loras]
        others = [self.checkpoint.other_vae.name] if self.checkpoint.other_vae else []
        return " or ".join(["The checkpoint itself", *dict.fromkeys(loras + others)])

    def case(self, model: Reference, name: str, inputs: dict[str, Tensor]) -> Case:
        self.say(f"reference {model.component}, {name}")
        given = {k: v if k == "input_ids" else v.half() for k, v in inputs.items()}
        outputs = model(given)
        for label, tensor in {**given, **outputs}.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"`{label}` of {model.component} ({name}) is not finite in PyTorch float32",
                    where=self.checkpoint.path,
                    hint=f"{self._broken()} is broken; nothing right can be made of it.",
                )
        return Case(name, given, outputs)

    def text_encoder(
        self, component: str, texts: dict[str, str], *, embeddings: bool
    ) -> tuple[Case, ...]:
        ids = token_ids(self.checkpoint, component, list(texts.values()))
        with self.reference(component) as model:
            found = tuple(
                self.case(model, name, {"input_ids": row[None].float()})
                for name, row in zip(texts, ids, strict=True)
            )
            return (*found, *self.embeddings(model)) if embeddings else found

    def embeddings(self, model: Reference) -> Iterator[Case]:
        """A text with each embedding: in our words for the model, in diffusers' for the reference.

        Both are in our ids. They are the same if our words are read as they should be.
        """
        for one in self.checkpoint.embeddings:
            if model.component not in one.text_encoders or model.tokens is None:
                continue
            ours = token_ids(self.checkpoint, model.component, [EMBEDDED.format(one.text)])
            theirs = model.tokens.ids(EMBEDDED.format(token(one.words[0])))
            case = self.case(model, embedded_case(one), {"input_ids": theirs.float()})
            yield replace(case, inputs={"input_ids": ours.float()})

    def unet(self, cases: Mapping[str, tuple[Case, ...]]) -> tuple[tuple[Case, ...], Tensor]:
        """The denoising run, and the latents it ends with."""
        config = self.checkpoint.unet
        conditions = self.conditions(cases)
        scheduler = euler(self.checkpoint.scheduler, self.denoising.timesteps)
        generator = np.random.Generator(np.random.PCG64(self.denoising.seed))
        size = self.checkpoint.vae.latent_size(self.resolution)
        channels = config.out_channels
        extra = _extra_channels(config.in_channels - channels, size)
        noise = torch.from_numpy(generator.standard_normal((1, channels, *size)))
        latents = noise.float() * scheduler.init_noise_sigma
        found = []
        with self.reference("unet") as model:
            for timestep in scheduler.timesteps:
                sample = scheduler.scale_model_input(latents, timestep)
                sample = torch.cat([sample, *extra], dim=1).expand(2, -1, -1, -1)
                inputs = {"sample": sample, "timestep": timestep.expand(2), **conditions}
                found.append(self.case(model, f"t={int(timestep)}", inputs))
                uncond, cond = found[-1].outputs["noise_pred"].chunk(2)
                guided = uncond + self.denoising.guidance * (cond - uncond)
                latents = step(scheduler, guided, timestep, latents)
        return tuple(found), latents

    def conditions(self, cases: Mapping[str, tuple[Case, ...]]) -> dict[str, Tensor]:
        """What the UNet is told of text and size, [unconditional, conditional]."""
        named = {name: {c.name: c.outputs for c in found} for name, found in cases.items()}
        hidden, pooled = [], []
        for text in ("negative prompt", "prompt"):
            parts = [of[text]["hidden_embeds"] for of in named.values()]
            hidden.append(torch.cat(parts, dim=-1))
            pooled.append(named["text_encoder_2"][text]["pooled_outputs"])
        states = torch.cat(hidden).transpose(1, 2)[:, :, None]  # [2, C, 1, 77]
        config = self.checkpoint.unet
        cross = config.cross_attention_dim
        if states.shape[1] != cross:
            raise InputError(
                f"`cross_attention_dim` is {cross}, the text encoders give {states.shape[1]}",
                where=self.checkpoint.part("unet").config_file,
            )
        height, width = self.resolution.height, self.resolution.width
        size: list[float] = [height, width, 0, 0]
        ids = [[*size, height, width]] * 2
        if config.time_ids == 5:
            ids = [[*size, score] for score in AESTHETIC_SCORES]
        return {
            "encoder_hidden_states": states,
            "time_ids": torch.tensor(ids, dtype=torch.float32),
            "text_embeds": torch.cat(pooled),
        }

    def vae_decoder(self, latents: Tensor) -> tuple[tuple[Case, ...], Tensor]:
        latents = latents / SCALING_FACTOR  # as apps do; other scales are the reference's to apply
        with self.reference("vae_decoder") as model:
            case = self.case(model, "final latents", {"z": latents})
        return (case,), case.outputs["image"]

    def vae_encoder(self, image: Tensor) -> tuple[Case, ...]:
        with self.reference("vae_encoder") as model:
            return (self.case(model, "decoded image", {"x": image.clamp(-1, 1)}),)

    def fp16(self, component: str, cases: tuple[Case, ...]) -> tuple[Case, ...]:
        """The cases with PyTorch float16's outputs beside the reference's."""
        found = []
        with self.reference(component, torch.float16) as model:
            for case in cases:
                self.say(f"PyTorch float16 {component}, {case.name}")
                found.append(replace(case, fp16=model(case.inputs)))
        return tuple(found)


def token_ids(checkpoint: Checkpoint, component: str, texts: list[str]) -> Tensor:
    """The texts under the checkpoint's own tokenizer for a text encoder: int64 [N, 77].

    Raises:
        InputError: there is no such tokenizer, or it does not belong to the text encoder.
    """
    from transformers import CLIPTokenizer

    name = component.replace("text_encoder", "tokenizer")
    with library_folder(checkpoint, name) as folder, quiet():
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            ids = tokenizer(
                texts,
                padding="max_length",
                max_length=MAX_TOKENS,
                truncation=True,
                return_tensors="pt",
            )["input_ids"]
        except Exception as error:  # the library raises whatever its Rust half does
            require_uninterrupted()
            raise InputError(f"transformers cannot use it: {error}", where=folder) from error
    vocabulary = checkpoint.text_encoders[component].vocabulary
    if int(ids.max()) >= vocabulary:
        raise InputError(
            f"gives token id {int(ids.max())}; {component} knows {vocabulary} tokens", where=folder
        )
    return ids


def _extra_channels(count: int, size: LatentSize) -> list[Tensor]:
    """What an inpainting UNet is given beside the latents: mask and latents of the masked image."""
    if count == 0:
        return []
    if count != 5:
        raise InputError(f"a UNet with {count} input channels beside the latents; inpainting has 5")
    height, width = size
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    rows = torch.linspace(-2, 2, height)[:, None]
    columns = torch.linspace(-2, 2, width)
    waves = [torch.sin((c + 1) * rows) * torch.cos((c + 2) * columns) for c in range(4)]
    return [mask, torch.stack(waves)[None] * (1 - mask)]
