"""diffusers' own SDXL pipelines around an artifact: its Core ML models stand in for the networks.

Schedulers, guidance, prompt and image handling are diffusers'. Text encoders, UNet and VAE are thin
adapters that turn what the pipelines pass into a model's inputs and back. The same adapters carry
PyTorch's networks when a reference is made, so only what computes differs between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from convert.checkpoint.pipeline import CONFIGS
from convert.checkpoint.pipeline_documents import PipelineDocument
from convert.components import BATCH, COMPONENTS, INPUT_ALIASES
from convert.errors import InputError
from convert.files.documents import checked
from convert.run.manifest import read_values
from convert.values import Resolution
from verify.artifact.folder import MANIFEST, require_models
from verify.mil import load_program
from verify.reference.reference import quiet
from verify.runtime.runtimes import Model, Runtime, choose
from verify.sampling.schedulers import make_scheduler
from verify.sampling.tokenizers import tokenizer

REMEDY = "Convert again with this version: the packages are kept, the manifest is new."

# A component with its Core ML interface: named inputs → named outputs, float32 on the CPU.
NetworkFunction = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def load_pipeline(
    artifact: Path,
    *,
    runtime: str | Runtime = "auto",
    device: str = "cpu",
    image_to_image: bool = False,
    scheduler: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """diffusers' StableDiffusionXLPipeline (or …Img2ImgPipeline) with an artifact's models.

    Pictures have the one size that the artifact is made for: pass `height` and `width` where that
    is no square. Every call of a model has batch 1 (UNet: 2), so larger batches are cut up.

    Args:
        artifact: folder of `.mlpackage` or `.mlmodelc` models with `vocab.json`, `merges.txt` and
            `manifest.json`.
        runtime: auto, coreml, torch, or one that is already there.
        device: where PyTorch computes: cpu, cuda or mps.
        scheduler: of `convert.recipe.schedulers`; the checkpoint's own if None.
        config: of `convert.checkpoint.pipeline`, where there is no manifest that holds it.

    Raises:
        InputError: a file is missing, or the checkpoint cannot do what is asked.
        CannotExecute: a model cannot be read.
    """
    artifact = Path(artifact)
    found, config = require_pipeline(artifact, config, image_to_image=image_to_image)
    make_scheduler(scheduler, config["scheduler"])  # or an error before anything is loaded
    runner = choose(runtime, device=device) if isinstance(runtime, str) else runtime
    return build_pipeline(
        {name: open_network(runner, file, name) for name, file in found.items()},
        config,
        {name: artifact for name in config["pad_tokens"]},
        scheduler=scheduler,
        image_to_image=image_to_image,
        resolution=resolution_of(found["unet"], config),
    )


def require_pipeline(
    artifact: Path, config: Mapping[str, Any] | None = None, *, image_to_image: bool = False
) -> tuple[dict[str, Path], Mapping[str, Any]]:
    """The models that a pipeline needs, by component, and its config; nothing is loaded.

    Raises:
        InputError: a model is missing, or there is no config.
    """
    found = require_models(artifact)
    config = config or artifact_config(artifact)
    needed = ["text_encoder_2", "unet", "vae_decoder"]
    needed += ["text_encoder"] if "tokenizer" in config["pad_tokens"] else []
    needed += ["vae_encoder"] if image_to_image else []
    for name in needed:
        if name not in found:
            why = ", which image-to-image begins with" if name == "vae_encoder" else ""
            raise InputError(
                f"has no {COMPONENTS[name].file}{why}",
                where=artifact,
                hint="Convert all components: leave out --component.",
            )
    return {name: found[name] for name in needed}, config


def artifact_config(artifact: Path) -> Mapping[str, Any]:
    """What the manifest says for pipelines; raises InputError if it says nothing."""
    file = artifact / MANIFEST
    found = read_values(artifact).get("pipeline")
    if not isinstance(found, dict) or not {*CONFIGS, "scheduler", "pipeline"} <= found.keys():
        raise InputError(
            "does not hold what diffusers' pipelines need, under `pipeline`",
            where=file,
            hint=REMEDY,
        )
    checked(PipelineDocument, found, f"{file}: `pipeline`", hint=REMEDY)
    return found


def resolution_of(unet: Path, config: Mapping[str, Any]) -> Resolution:
    """The image size that a UNet's package is made for."""
    shape = next(f.shape for f in load_program(unet).inputs if f.name == "sample")
    factor = vae_factor(config)
    return Resolution(shape[3] * factor, shape[2] * factor)


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent, along each side."""
    return int(2 ** (len(config["vae"]["block_out_channels"]) - 1))


def require_size(resolution: Resolution | None, asked: Resolution) -> None:
    """Raise InputError unless the models are made for the size that is asked for."""
    if resolution not in (None, asked):
        raise InputError(
            f"a picture of {asked} is asked for; the models are made for {resolution}",
            hint=f"Pass width={resolution.width}, height={resolution.height}, or an image of that "
            "size; or convert for another size.",
        )


def network(model: Model) -> NetworkFunction:
    """A loaded package that takes and gives tensors."""
    return lambda inputs: {k: torch.from_numpy(v) for k, v in model(inputs).items()}


def open_network(runner: Runtime, file: Path, component: str) -> NetworkFunction:
    """A component's package or compiled model, called with the component's usual inputs.

    A bundle's VAE encoder has another name for its input (see `convert.components`).
    """
    loaded = network(runner.load(file))
    second = INPUT_ALIASES.get(component, {})
    has = {f.name for f in load_program(file).inputs} if second else set()
    names = {n: alias for n, alias in second.items() if alias in has and n not in has}
    if not names:
        return loaded
    return lambda inputs: loaded({names.get(n, n): value for n, value in inputs.items()})


def build_pipeline(
    networks: Mapping[str, NetworkFunction],
    config: Mapping[str, Any],
    tokenizers: Mapping[str, Path],
    *,
    scheduler: str | None = None,
    image_to_image: bool = False,
    resolution: Resolution | None = None,
) -> Any:
    """diffusers' pipeline around networks that have the Core ML interfaces.

    Args:
        networks: by component.
        config: of `convert.checkpoint.pipeline`.
        tokenizers: folders with vocab.json and merges.txt, by `tokenizer` and `tokenizer_2`.
        resolution: the only one that the networks take; any if None.

    Raises:
        InputError: the checkpoint is one that the pipeline cannot run.
    """
    with quiet():  # the import warns of image processors that are not used here
        from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    latent_channels = config["vae"]["latent_channels"]
    if config["unet"]["in_channels"] != latent_channels:
        raise InputError(
            f"a UNet of {config['unet']['in_channels']} input channels, as inpainting has, takes "
            "more than latents; text-to-image and image-to-image cannot run it"
        )
    refiner = "text_encoder" not in networks
    if refiner and not image_to_image:
        raise InputError(
            "a refiner, without text encoder 1, only refines images",
            hint="Give it an image: image-to-image.",
        )
    kind = StableDiffusionXLImg2ImgPipeline if image_to_image else StableDiffusionXLPipeline
    options = dict(config["pipeline"])
    if not image_to_image:
        options.pop("requires_aesthetics_score", None)
    pads, added = config["pad_tokens"], config.get("added_tokens", {})
    tokens = {name: tokenizer(tokenizers[name], pads[name], added.get(name, ())) for name in pads}
    with quiet():
        pipeline = kind(
            vae=VAE(networks, config["vae"], resolution),
            text_encoder=None if refiner else TextEncoder(networks["text_encoder"], False, {}),
            text_encoder_2=TextEncoder(networks["text_encoder_2"], True, config["text_encoder_2"]),
            tokenizer=None if refiner else tokens["tokenizer"],
            tokenizer_2=tokens["tokenizer_2"],
            unet=UNet(networks["unet"], config["unet"], resolution, vae_factor(config)),
            scheduler=make_scheduler(scheduler, config["scheduler"]),
            add_watermarker=False,
            **options,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- the adapters ----


class Adapter(torch.nn.Module):
    """What diffusers' pipelines ask of a network beside calling it."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, config: Mapping[str, Any]) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.config = FrozenDict(config)


class TextEncoder(Adapter):
    """A text encoder: token ids [N, 77] → what the pipelines read of transformers' output."""

    def __init__(self, run: NetworkFunction, projected: bool, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.run, self.projected = run, projected

    def forward(self, input_ids: Tensor, output_hidden_states: bool = True) -> TextOutput:
        """input_ids [N, 77] → hidden states [N, 77, C] and projection [N, P], row by row."""
        rows = [self.run({"input_ids": row[None].float()}) for row in input_ids]  # each [1, 77]
        hidden = torch.cat([row["hidden_embeds"] for row in rows])  # [N, 77, C]
        pooled = torch.cat([row["pooled_outputs"] for row in rows])  # [N, P]
        return TextOutput(pooled if self.projected else hidden, HiddenStates(hidden))


class TextOutput(tuple[Any, ...]):
    """transformers' output as the pipelines index it: [0] is the projection, or a hidden state."""

    hidden_states: HiddenStates

    def __new__(cls, first: Tensor, hidden_states: HiddenStates) -> TextOutput:
        """`first` at index 0, the hidden states beside it."""
        output = super().__new__(cls, (first,))
        output.hidden_states = hidden_states
        return output


class HiddenStates:
    """The hidden states of a Core ML text encoder, which gives only the last but one."""

    def __init__(self, penultimate: Tensor) -> None:
        self.penultimate = penultimate

    def __getitem__(self, index: int) -> Tensor:
        if index != -2:
            raise InputError(
                f"hidden state {index} was asked for; the Core ML text encoders give -2",
                hint="Leave out clip_skip: -2 is what model cards call clip skip 2.",
            )
        return self.penultimate


class UNet(Adapter):
    """The UNet, whose batch is 2: larger ones are cut up, a batch of 1 is fed twice."""

    def __init__(
        self,
        run: NetworkFunction,
        config: Mapping[str, Any],
        resolution: Resolution | None,
        pixels_per_latent: int,
    ) -> None:
        # What diffusers makes when no size is given; it knows squares only.
        square = resolution is not None and resolution.width == resolution.height
        size = resolution.width // pixels_per_latent if resolution and square else None
        super().__init__({**config, "sample_size": size or config["sample_size"]})
        self.run, self.resolution = run, resolution
        self.pixels_per_latent = pixels_per_latent
        features = config["projection_class_embeddings_input_dim"]
        # diffusers compares the number of time ids with the layer that takes them.
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=features))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor],
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The predicted noise [N, 4, h, w], as diffusers' `UNet2DConditionModel.forward` gives it.

        Args:
            sample: [N, 4, h, w].
            timestep: one for all.
            encoder_hidden_states: [N, 77, C].
            added_cond_kwargs: time_ids [N, 6] and text_embeds [N, P].

        Raises:
            InputError: `sample` is of another size than the artifact is made for, or there is
                something to take into account that a Core ML UNet has no input for.
        """
        if timestep_cond is not None or cross_attention_kwargs:
            raise InputError("the Core ML UNet takes neither timestep_cond nor attention kwargs")
        factor = self.pixels_per_latent
        size = Resolution(width=factor * sample.shape[-1], height=factor * sample.shape[-2])
        require_size(self.resolution, size)
        inputs = {
            "sample": sample,
            "timestep": timestep.float().reshape(-1).expand(len(sample)),
            "encoder_hidden_states": encoder_hidden_states.transpose(1, 2)[:, :, None],
            "time_ids": added_cond_kwargs["time_ids"],
            "text_embeds": added_cond_kwargs["text_embeds"],
        }  # [N, 4, h, w], [N], [N, C, 1, 77], [N, 6], [N, P]
        noise_pred = torch.empty_like(sample)
        for rows in pairs(len(sample)):
            found = self.run({name: value[rows] for name, value in inputs.items()})["noise_pred"]
            noise_pred[rows] = found
        return (noise_pred,)


def pairs(count: int) -> Iterator[list[int]]:
    """Which rows of a batch are computed together: [unconditional, conditional] of one picture."""
    half = count // BATCH
    yield from ([row, row + half] for row in range(half))
    if count % BATCH:
        yield [count - 1] * BATCH


class VAE(Adapter):
    """The VAE's two halves, picture by picture.

    diffusers' SDXL pipelines do not read `shift_factor`, so it is added here as others add it.
    """

    def __init__(
        self,
        networks: Mapping[str, NetworkFunction],
        config: Mapping[str, Any],
        resolution: Resolution | None,
    ) -> None:
        super().__init__(config)
        self.networks, self.resolution = dict(networks), resolution
        self.shift = float(config.get("shift_factor") or 0)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Latents [N, 4, h, w], divided by the scaling factor → images [N, 3, H, W] of −1 to 1."""
        latents = latents + self.shift
        images = [self.networks["vae_decoder"]({"z": row[None]})["image"] for row in latents]
        return (torch.cat(images),)

    def encode(self, images: Tensor) -> Any:
        """Images [N, 3, H, W] of −1 to 1 → the distribution of their latents [N, 4, h, w].

        Raises:
            InputError: they are of another size than the artifact is made for.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        size = Resolution(width=images.shape[-1], height=images.shape[-2])
        require_size(self.resolution, size)
        rows = [self.networks["vae_encoder"]({"x": row[None]})["latent"] for row in images]
        mean, log_variance = torch.cat(rows).chunk(2, dim=1)  # which diffusers clamps and samples
        parameters = torch.cat([mean - self.shift, log_variance], dim=1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(parameters))
