"""The peer engine: Apple's own UNet and coremltools' translation, to compare ours with.

The only importer of `python_coreml_stable_diffusion`, and only of its `unet`: its `torch2coreml`
does not import with current diffusers. What that script does for SDXL is repeated here: trace in
float32, let coremltools make an ML Program of it (ml-stable-diffusion 1.1.0, e12202c).
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.proto import Model_pb2
from torch import Tensor, nn

from convert.checkpoint import Checkpoint, Part
from convert.components import BATCH, COMPONENTS, MAX_TOKENS
from convert.errors import CannotExecute, InputError, UserError
from convert.mlpackage import MANIFEST, MODEL, Description, manifest
from convert.models.attention import QUERY_CHUNK
from convert.models.clip import MASKED
from convert.models.configs import CLIPConfig, UNetConfig, VAEConfig
from convert.values import DeploymentTarget

PACKAGE = "python_coreml_stable_diffusion"
INSTALL = "pip install --no-deps git+https://github.com/apple/ml-stable-diffusion@e12202c"
VERSION_KEY = "com.github.apple.ml-stable-diffusion.version"
# What coremltools says of a conversion, but for its date: equal input gives equal packages.
KEPT_METADATA = ("com.github.apple.coremltools.source", "com.github.apple.coremltools.source_dialect")


def convert_job(
    checkpoint: Checkpoint,
    job: Any,
    about: Mapping[str, Any],
    digests: Mapping[str, str],
    package: Path,
    cache: Any,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Make the package of one job, as `convert.native.convert_job` does; digests are not known.

    Raises:
        InputError: a bit width other than 16, or as `convert_component` does.
    """
    if job.bits != "16":
        raise InputError(
            f"Apple's engine makes 16-bit packages, not {job.bits}-bit ones",
            hint="Use `--engine native`, or `--bits 16`.",
        )
    component = COMPONENTS[job.component]
    size = job.resolution
    convert_component(
        checkpoint,
        job.component,
        image_size=(size.height, size.width) if size else (0, 0),
        attention=job.attention or "original",
        out=package,
        deployment=job.deployment,
        dtype=np.dtype(job.precision),
        description=Description(**about, inputs=component.inputs, outputs=component.outputs),
    )
    advance(sum(f.stat().st_size for f in package.rglob("weight.bin")))
    return {}


def convert_component(
    checkpoint: Checkpoint,
    component: str,
    *,
    image_size: tuple[int, int],
    attention: str,
    out: Path,
    deployment: DeploymentTarget,
    dtype: np.dtype | type,
    description: Description,
) -> None:
    """Convert one component with Apple's network and coremltools' translation.

    The whole network is loaded in float32: a full-size UNet takes some 21 GiB and a quarter of an
    hour with attention `original`, more with the others. Changes a global of Apple's module while
    it runs, so one UNet at a time in a process.

    Args:
        image_size: (height, width) in pixels; text encoders do not depend on it.
        attention: of the UNet; other components do not depend on it.
        out: the `.mlpackage`; appears complete or not at all, and must not exist.
        dtype: of weights, activations and the UNet's and VAE's inputs.

    Raises:
        InputError: Apple's package is missing, its network would ignore part of the config, or the
            checkpoint does not fit.
        CannotExecute: tracing or translation failed.
    """
    if out.exists():
        raise InputError("exists already", where=out)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.mlpackage")
    dtype = np.dtype(dtype)
    user = dict(description.user)
    try:
        with _quiet(), torch.no_grad():
            if component == "unet":
                apple = _import_unet()
                user[VERSION_KEY] = _version()
                with _attention(apple, attention):
                    network, inputs = _unet(apple, checkpoint, image_size, attention, dtype)
                    program = _trace(network, inputs)
            elif component.startswith("vae"):
                network, inputs = _vae(checkpoint.part(component), component, image_size, dtype)
                program = _trace(network, inputs)
            else:
                network, inputs = _text_encoder(checkpoint.part(component), component)
                program = _trace(network, inputs)
            del network  # coremltools copies the weights once more
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, deployment),
                inputs=[ct.TensorType(n, shape=x.shape, dtype=x.dtype.type) for n, x in inputs.items()],
                outputs=[ct.TensorType(n, dtype=np.float32) for n in _outputs(component)],
                compute_precision=ct.precision[dtype.name.upper()],
                skip_model_load=True,
                package_dir=str(temporary),
            )
        _describe(temporary, description, user)
        temporary.rename(out)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise CannotExecute(
            f"Apple's converter failed: {type(error).__name__}: {error}",
            where=component,
            hint="The native engine does not depend on tracing: use `--engine native`.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _import_unet() -> Any:
    try:
        from python_coreml_stable_diffusion import unet
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != PACKAGE:
            raise CannotExecute(
                f"Apple's package needs `{error.name}`, which is not installed", where=PACKAGE
            ) from error
        raise InputError(
            "Apple's converter is not installed; its engine needs it for the UNet",
            where=PACKAGE,
            hint=f"Install it beside this tool: {INSTALL}",
        ) from None
    return unet


def _version() -> str:
    from python_coreml_stable_diffusion import __version__

    return str(__version__)


def _outputs(component: str) -> list[str]:
    # Both ends trace in this order; the table's is the descriptions'.
    return list(COMPONENTS[component].outputs)


def _unet(
    apple: Any,
    checkpoint: Checkpoint,
    image_size: tuple[int, int],
    attention: str,
    dtype: np.dtype,
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    part, vae = checkpoint.part("unet"), checkpoint.part("vae_decoder")
    where = part.path / "config.json"
    c = UNetConfig.parse(part.config, where, checkpoint.text_embed_dim)
    latent = VAEConfig.parse(vae.config, vae.path / "config.json").latent_size(image_size)
    _require_supported(c, where)
    _require_size(c, latent, attention)
    settings = {
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "block_out_channels": tuple(c.channels),
        "down_block_types": tuple(c.down_blocks),
        "up_block_types": tuple(c.up_blocks),
        "mid_block_type": c.mid_block,
        "layers_per_block": c.layers[0],
        "transformer_layers_per_block": [depth[0] for depth in c.transformer_layers],
        "attention_head_dim": c.heads,
        "cross_attention_dim": c.cross_attention_dim,
        "norm_num_groups": c.groups,
        "norm_eps": c.epsilon,
        "flip_sin_to_cos": c.flip_sin_to_cos,
        "freq_shift": c.freq_shift,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": c.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": c.text_embed_dim
        + c.time_ids * c.addition_time_embed_dim,
    }
    network = _load(lambda: apple.UNet2DConditionModelXL(**settings), part)
    for name, parameter in network.named_parameters():
        # Their layer norm divides every bias by its weight.
        if not torch.isfinite(parameter).all():
            raise InputError(
                f"`{name}` is not finite in Apple's network: a layer norm has a weight of 0",
                where=part.path,
                hint="Use `--engine native`.",
            )
    height, width = latent
    shapes = {
        "sample": (BATCH, c.in_channels, height, width),
        "timestep": (BATCH,),
        "encoder_hidden_states": (BATCH, c.cross_attention_dim, 1, MAX_TOKENS),
        "time_ids": (BATCH, c.time_ids),
        "text_embeds": (BATCH, c.text_embed_dim),
    }
    return network, {name: np.ones(shape, dtype) for name, shape in shapes.items()}


def _require_supported(c: UNetConfig, where: Path) -> None:
    """Refuse what Apple's network would silently ignore."""
    depths = [sorted(set(depth)) for depth in c.transformer_layers]
    mirrored = [sorted(set(depth)) for depth in c.up_transformer_layers][::-1]
    fixed: list[tuple[str, Any, Any]] = [
        ("norm_num_groups", c.groups, 32),
        ("act_fn", c.act, "silu" if c.act != "swish" else "swish"),
        ("conv_in_kernel", c.conv_in_kernel, 3),
        ("conv_out_kernel", c.conv_out_kernel, 3),
        ("time_embedding_dim", c.time_embed_dim, 4 * c.channels[0]),
        ("layers_per_block", c.layers, [c.layers[0]] * len(c.layers)),
        ("transformer_layers_per_block", depths, [d[:1] for d in depths]),
        ("reverse_transformer_layers_per_block", mirrored, depths),
        ("mid_block_type", c.mid_block, "UNetMidBlock2DCrossAttn"),
    ]
    for key, value, known in fixed:
        if value != known:
            raise InputError(
                f"`{key}` is {value!r}, which Apple's network ignores: it always has {known!r}",
                where=where,
                hint="Use `--engine native`, which builds it.",
            )


def _require_size(c: UNetConfig, latent: tuple[int, int], attention: str) -> None:
    """Refuse sizes at which Apple's network fails while it is traced."""
    height, width = latent
    step = 2 ** (len(c.channels) - 1)
    if height % step or width % step:
        raise InputError(
            f"latents of {width}x{height}: Apple's network needs multiples of {step}",
            hint="Use `--engine native`, or another resolution.",
        )
    if attention != "split_einsum_v2":
        return
    for level, (down, up) in enumerate(zip(c.down_blocks, c.up_blocks[::-1], strict=True)):
        queries = math.prod(latent) // 4**level
        has_attention = "CrossAttn" in down + up or level == len(c.channels) - 1
        if has_attention and queries > QUERY_CHUNK and queries % QUERY_CHUNK:
            raise InputError(
                f"{queries} queries are no multiple of {QUERY_CHUNK}, which Apple's "
                "split_einsum_v2 needs",
                hint="Use `--engine native`, or attention split_einsum.",
            )


def _vae(
    part: Part, component: str, image_size: tuple[int, int], dtype: np.dtype
) -> tuple[nn.Module, dict[str, np.ndarray]]:
    from diffusers import AutoencoderKL

    c = VAEConfig.parse(part.config, part.path / "config.json")
    height, width = c.latent_size(image_size)
    vae = _load(lambda: AutoencoderKL.from_config(dict(part.config)), part)
    # One half is enough to trace; a quantizing convolution may be absent.
    if component == "vae_decoder":
        halves = [vae.post_quant_conv, vae.decoder]
        inputs = {"z": np.ones((1, c.latent_channels, height, width), dtype)}
    else:
        halves = [vae.encoder, vae.quant_conv]
        inputs = {"x": np.ones((1, c.in_channels, *image_size), dtype)}
    return nn.Sequential(*(h for h in halves if h is not None)).eval(), inputs


def _text_encoder(part: Part, component: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    projected = component == "text_encoder_2"
    CLIPConfig.parse(part.config, part.path / "config.json", projected=projected)
    settings = CLIPTextConfig.from_dict(dict(part.config))
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    network = _TextEncoder(_load(lambda: cls(settings), part), projected)
    return network.eval(), {"input_ids": np.ones((1, MAX_TOKENS), np.float32)}


class _TextEncoder(nn.Module):
    """`input_ids` int32 [1, 77] → last but one hidden state [1, 77, C], pooled output [1, C]."""

    mask: Tensor

    def __init__(self, model: nn.Module, projected: bool) -> None:
        super().__init__()
        self.model, self.projected = model, projected
        # transformers' own causal mask is the lowest float32, which float16 makes infinite.
        mask = torch.full((1, 1, MAX_TOKENS, MAX_TOKENS), MASKED).triu(1)
        self.register_buffer("mask", mask)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(input_ids, attention_mask=self.mask, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds if self.projected else out.pooler_output


def _load(make: Callable[[], Any], part: Part) -> Any:
    """The network that `make` builds, with the part's tensors in float32 for its parameters."""
    with torch.device("meta"):  # no memory, and no random values, that are replaced at once
        network = make().eval()
    prefix = "text_model." if any(k.startswith("text_model.") for k in network.state_dict()) else ""
    state = {
        name if name.startswith("text_projection.") else prefix + name: torch.from_numpy(
            tensor.read(np.float32)
        )
        for name, tensor in part.tensors.items()
    }
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise InputError(
            "the weights do not fit the network that the config describes",
            where=part.path,
            hint=str(error),
        ) from None
    for module in network.modules():
        if "position_ids" in module._buffers:  # computed, not stored
            module.position_ids = torch.arange(MAX_TOKENS)[None]
    return network


def _trace(network: nn.Module, inputs: Mapping[str, np.ndarray]) -> torch.jit.ScriptModule:
    dtypes = {name: torch.int32 if name == "input_ids" else torch.float32 for name in inputs}
    samples = tuple(torch.from_numpy(x).to(dtypes[name]) for name, x in inputs.items())
    return torch.jit.trace(network, samples, check_trace=False)


def _describe(package: Path, description: Description, user: Mapping[str, str]) -> None:
    """Our descriptions and metadata in place of coremltools', without copying the weights."""
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    features: Sequence[tuple[Any, Mapping[str, str]]] = (
        (model.description.input, description.inputs),
        (model.description.output, description.outputs),
    )
    for found, texts in features:
        for feature in found:
            feature.shortDescription = texts[feature.name]
    metadata = model.description.metadata
    kept = {k: metadata.userDefined[k] for k in KEPT_METADATA if k in metadata.userDefined}
    metadata.Clear()
    metadata.shortDescription = description.short
    metadata.author = description.author
    metadata.license = description.license
    metadata.versionString = description.version
    metadata.userDefined.update({**kept, **user})
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (package / MANIFEST).write_bytes(manifest())


@contextmanager
def _attention(apple: Any, attention: str) -> Iterator[None]:
    """Apple's choice of attention is a global of its module, read while the network runs."""
    before = apple.ATTENTION_IMPLEMENTATION_IN_EFFECT
    apple.ATTENTION_IMPLEMENTATION_IN_EFFECT = apple.AttentionImplementations[attention.upper()]
    try:
        yield
    finally:
        apple.ATTENTION_IMPLEMENTATION_IN_EFFECT = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings, log lines and progress bars."""
    from tqdm import tqdm

    before = logging.root.manager.disable
    init = tqdm.__init__

    def hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "disable": True})

    logging.disable(logging.CRITICAL)
    tqdm.__init__ = hidden
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = init
        logging.disable(before)
