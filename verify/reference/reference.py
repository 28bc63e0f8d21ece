"""The reference: each component as diffusers and transformers run it, with the Core ML interface.

The libraries' own `from_pretrained` loads the checkpoint's folder; our reader says no more than the
variant. Single files are read in `verify.reference.single_file`, LoRAs merged in
`verify.reference.loras`, embeddings added in `verify.reference.embeddings`. So a wrong choice of
files, or a mistake in our reader or networks, shows as a difference.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.latents import SCALING_FACTOR
from convert.components import COMPONENTS, ComponentKind
from convert.errors import InputError
from convert.files.json_files import reason
from convert.process.interrupts import require_uninterrupted
from convert.process.memory import give_back
from verify.reference.embeddings import LibraryTokens, how_added
from verify.reference.loras import how_merged, merge_into, unmerged
from verify.reference.single_file import how_loaded, load_single


class Reference:
    """One component in PyTorch, to be used in a `with` statement; leaving it frees the weights.

    Args:
        checkpoint: where the weights are.
        component: one that the checkpoint has.
        dtype: float32 for the reference itself, float16 for the noise floor that PyTorch sets.
        device: a torch device.
        weights: values that replace the checkpoint's, by the names our reader gives them; what a
            compressed model has decoded, for one.
        folded: a VAE takes and gives latents as the converted models do
            (`convert.checkpoint.latents`); else as diffusers' own does.

    Raises:
        InputError: the libraries cannot read the checkpoint, or find a weight missing in it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        component: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        weights: Mapping[str, Tensor] | None = None,
        folded: bool = True,
    ) -> None:
        self.component = component
        self._kind = COMPONENTS[component].kind
        self.folded = folded
        self.dtype = dtype
        self.device = torch.device(device)
        bare = checkpoint.bare or checkpoint
        merged = bare.parts[COMPONENTS[component].part]
        part = unmerged(merged)
        on_cpu = self.device.type == "cpu"  # accelerators have their own ways to save memory
        half = all(value.dtype == torch.float16 for value in (weights or {}).values())
        self._widens = on_cpu and dtype == torch.float32 and half and _is_large_and_half(part)
        stored = torch.float16 if self._widens else dtype
        if part.single is None:
            model = _load(part, component, stored)
        else:
            with quiet():
                model = load_single(part, component, stored)
        if merged is not part:
            with quiet():
                merge_into(model, bare, merged)
        self.tokens: LibraryTokens | None = None  # of a text encoder with embeddings
        if checkpoint.embeddings and self._kind == "text_encoder":
            with quiet():
                self.tokens = LibraryTokens(model, checkpoint, merged.name)
        _replace(model, weights or {})
        self._model: Any = model.to(self.device)

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # At once, whatever still refers to the module; collecting garbage takes longer than a run.
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            tensor.data = tensor.data.new_empty(0)
        self._model = None
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules by their paths, as the checkpoint's tensors have them."""
        return {k.removeprefix("text_model."): v for k, v in self._model.named_modules() if k}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, float32 on the CPU, under the names and in the shapes of the Core ML model.

        Args:
            inputs: as the Core ML model has them, in any float dtype.
        """
        with torch.no_grad():  # in `inference_mode` views forget what `_float` asks for
            outputs = self._forward(inputs)
        return {name: value.float().cpu().clone() for name, value in outputs.items()}

    def differentiable(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs on the model's device, with the graph that gradients flow back through."""
        with torch.enable_grad():
            return self._forward(inputs)

    def parameters(self) -> dict[str, Tensor]:
        """The model's own parameters, by the names our reader gives them."""
        named = self._model.named_parameters()
        return {name.removeprefix("text_model."): value for name, value in named}

    def _forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: value.to(self.device, torch.float32) for name, value in inputs.items()}
        rescaled = self.folded and _is_rescaled(self._model.config)
        if rescaled and "z" in given:
            given["z"] = _own_latents(self._model.config, given["z"])
        with self._arithmetic(), quiet():
            outputs: dict[str, Tensor] = _FORWARD[self._kind](self._model, given, self.dtype)
        if rescaled and "latent" in outputs:
            outputs["latent"] = _apps_latents(self._model.config, outputs["latent"].float())
        return outputs

    def _arithmetic(self) -> Any:
        if self._widens:
            return _Widened()
        if self.dtype == torch.float16 and self.device.type == "cpu":
            return _HalfOnCPU()
        if self.device.type == "cuda":
            # cuDNN would run fp32 convolutions in TF32, ten bits of mantissa, by default.
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()


# ---- the interfaces ----


def _unet(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # diffusers embeds timestep and time_ids in float32 whatever the model's dtype.
    text = given["encoder_hidden_states"].squeeze(2).transpose(1, 2)  # [2, 77, C]
    out = model(
        given["sample"].to(dtype),
        given["timestep"],
        encoder_hidden_states=text.to(dtype),
        added_cond_kwargs={
            "text_embeds": given["text_embeds"].to(dtype),
            "time_ids": given["time_ids"],
        },
    )
    return {"noise_pred": out.sample}


def _text_encoder(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    out = model(given["input_ids"].long(), output_hidden_states=True)
    projected = getattr(out, "text_embeds", None)
    pooled = out.pooler_output if projected is None else projected
    return {"hidden_embeds": out.hidden_states[-2], "pooled_outputs": pooled}


def _vae_decoder(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {"image": model.decode(given["z"].to(dtype)).sample}


def _vae_encoder(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # The distribution's parameters before any clamping: mean ‖ log-variance.
    return {"latent": model.encode(given["x"].to(dtype)).latent_dist.parameters}


# ---- how latents are scaled, after diffusers' own configs and pipelines ----


def _is_rescaled(config: Any) -> bool:
    """Whether a VAE's config asks for another scale than the one that apps have."""
    if not hasattr(config, "scaling_factor"):
        return False  # no VAE
    has_mean = config.latents_mean is not None and config.latents_std is not None
    return config.scaling_factor != SCALING_FACTOR or has_mean or bool(config.shift_factor)


def _own_latents(config: Any, z: Tensor) -> Tensor:
    """What apps give a decoder → what diffusers' pipelines give it: [1, C, h, w]."""
    latents = z * SCALING_FACTOR
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = _per_channel(config.latents_mean, z), _per_channel(config.latents_std, z)
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (config.shift_factor or 0)


def _apps_latents(config: Any, parameters: Tensor) -> Tensor:
    """An encoder's mean ‖ log-variance → that of what apps multiply by 0.13025: [1, 2C, h, w]."""
    mean, log_variance = parameters.chunk(2, dim=1)
    if config.latents_mean is not None and config.latents_std is not None:
        center, std = (_per_channel(v, mean) for v in (config.latents_mean, config.latents_std))
        factor = config.scaling_factor / std
    else:
        center = torch.tensor(float(config.shift_factor or 0))
        factor = torch.tensor(float(config.scaling_factor))
    mean = (mean - center) * factor / SCALING_FACTOR
    return torch.cat([mean, log_variance + 2 * torch.log(factor / SCALING_FACTOR)], dim=1)


def _per_channel(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


Forward = Callable[[Any, dict[str, Tensor], torch.dtype], dict[str, Tensor]]
_FORWARD: dict[ComponentKind, Forward] = {
    "text_encoder": _text_encoder,
    "unet": _unet,
    "vae_decoder": _vae_decoder,
    "vae_encoder": _vae_encoder,
}


class _HalfOnCPU(TorchFunctionMode):
    """fp16 convolutions and linear layers on a CPU: fp32 inside, rounded once, as on a GPU.

    Without fp16 instructions torch's own take up to two hundred times as long.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv2d, F.linear) and args[0].dtype == torch.float16:
            args = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
            kwargs = {k: v.float() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
            return func(*args, **kwargs).half()
        return func(*args, **kwargs)


class _Widened(TorchFunctionMode):
    """float32 arithmetic on weights that are held in float16, widened where a layer uses them.

    The weights are those of a float32 model, in half its memory, and so are the operations on
    them: the outputs differ by no more than float32 rounds. Bits are not promised; a library that
    picks its kernel by where a tensor lies in memory may add in another order.

    Layers are told by having an input that is float32 already; embeddings, which have none, give
    float16 that widens next.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv2d, F.linear, F.layer_norm, F.group_norm):
            args = tuple(_float(a) for a in args)
            kwargs = {k: _float(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _float(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float16:
        return value
    # `matmul` multiplies a whole batch at once only where the weight asks for a gradient, as
    # parameters do; else image by image, with another kernel: other bits on some processors.
    return value.float().requires_grad_(value.requires_grad)


# ---- loading ----


LARGE = 1 << 30  # bytes of float16 weights from which they are widened layer by layer


def _is_large_and_half(part: Part) -> bool:
    """Whether a UNet's weights are stored in float16 and would fill memory in float32."""
    is_half = all(tensor.dtype == "F16" for tensor in part.tensors.values())
    return part.name == "unet" and is_half and part.size * 2 >= LARGE


def _load(part: Part, component: str, dtype: torch.dtype) -> Any:
    with quiet(), tempfile.TemporaryDirectory(prefix="sdxl-reference-") as folder:
        spec = COMPONENTS[component]
        if spec.kind == "text_encoder":
            from transformers import CLIPTextModel, CLIPTextModelWithProjection

            kind: Any = CLIPTextModelWithProjection if spec.projected else CLIPTextModel
            options = {"dtype": dtype}
        else:
            from diffusers import AutoencoderKL, UNet2DConditionModel

            kind = AutoencoderKL if spec.part == "vae" else UNet2DConditionModel
            options = {"torch_dtype": dtype}
        # diffusers looks for indexes of older spelling by splitting the whole path at its dots.
        place = Path(folder, "part")
        place.symlink_to(part.path.resolve())
        try:
            model, info = kind.from_pretrained(
                place,
                variant=part.variant,
                use_safetensors=not part.is_pickled,  # torch reads pickles as `weights_only`
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever Python raises of config values of the wrong type
            require_uninterrupted()
            said = reason(error).replace(str(place), str(part.path))
            raise InputError(
                f"{kind.__name__} cannot be loaded: {said}",
                where=part.path / "config.json",
                hint="Its weights and its config.json are read by the library itself.",
            ) from error
    # The libraries fill in what is missing with random numbers and only warn.
    for what in ("missing_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in info.get(what) or ()):
            raise InputError(
                f"{kind.__name__} finds {len(keys)} {what.replace('_', ' ')}, the first {keys[0]}",
                where=part.path,
                hint="The weights do not belong to this config.json, or are incomplete.",
            )
    return model.eval()


def _replace(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Put values in place of a model's own, by our names; shapes may differ by axes of length 1.

    Those of the model's own dtype are taken as they are, not copied: half of 10 GB for a UNet.
    """
    own = {key.removeprefix("text_model."): value for key, value in model.named_parameters()}
    for name, value in weights.items():
        own[name].data = value.reshape(own[name].shape).to(own[name].dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress bars from diffusers and transformers, within the block only."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
    try:
        for lib in libraries:
            lib.set_verbosity(logging.CRITICAL)
            lib.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for lib, (verbosity, bars) in zip(libraries, before, strict=True):
            lib.set_verbosity(verbosity)
            if bars:
                lib.enable_progress_bar()


def how_read(source: Checkpoint) -> str:
    """What of the reference is not the libraries' alone, for the scope of a report; or nothing."""
    bare = source.bare or source  # what is read before embeddings are added
    ways = (how_loaded(bare), how_merged(bare), how_added(source))
    return "".join(f"; {told}" for told in ways if told)
