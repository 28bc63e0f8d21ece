"""The networks that Apple's converter traces, in PyTorch, with a checkpoint's weights in them.

Apple's UNet for the UNet, diffusers' and transformers' modules for the rest, as its `torch2coreml`
has it. Each function returns the module and an example of its inputs, of the dtypes that the Core
ML model shall have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.configs import LatentSize, UNetConfig
from convert.components import COMPONENTS, MAX_TOKENS
from convert.errors import InputError
from convert.networks.clip import MASKED
from convert.values import QUERY_CHUNK, Resolution

Traceable = tuple[nn.Module, dict[str, np.ndarray]]


def unet(
    apple: Any,
    checkpoint: Checkpoint,
    resolution: Resolution,
    attention: str,
    dtype: np.dtype,
) -> Traceable:
    """Apple's UNet: five inputs, the noise.

    Its group norms get the checkpoint's `norm_num_groups`, where Apple's own script leaves 32.

    Args:
        apple: `python_coreml_stable_diffusion.unet`.
        resolution: of the image.

    Raises:
        InputError: a setting that Apple's network ignores, or a size at which it fails.
    """
    part, c = checkpoint.part("unet"), checkpoint.unet
    latent = checkpoint.vae.latent_size(resolution)
    _require_supported(c, part.config_file)
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
        "norm_eps": c.epsilon,
        "flip_sin_to_cos": c.flip_sin_to_cos,
        "freq_shift": c.freq_shift,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": c.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": c.text_embed_dim
        + c.time_ids * c.addition_time_embed_dim,
    }

    def build() -> nn.Module:
        network = apple.UNet2DConditionModelXL(**settings)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = c.groups
        return network

    network = _load(build, part)
    for name, parameter in network.named_parameters():
        # Apple's layer norm adds the bias before it multiplies, so loading divides by the weight.
        if name.endswith(".bias") and not torch.isfinite(parameter).all():
            raise InputError(
                f"`{name}` is not finite in Apple's network: a layer norm has a weight of 0",
                where=part.path,
                hint="Use `--engine native`.",
            )
    return network, _ones(checkpoint, "unet", resolution, dtype)


def _require_supported(c: UNetConfig, where: Path) -> None:
    """Refuse what Apple's network would silently ignore."""
    depths = [sorted(set(depth)) for depth in c.transformer_layers]
    mirrored = [sorted(set(depth)) for depth in c.up_transformer_layers][::-1]
    fixed: list[tuple[str, Any, Any]] = [
        ("act_fn", "silu" if c.act == "swish" else c.act, "silu"),
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


def _require_size(c: UNetConfig, latent: LatentSize, attention: str) -> None:
    """Refuse sizes at which Apple's network fails while it is traced."""
    step = 2 ** (len(c.channels) - 1)
    if latent.height % step or latent.width % step:
        raise InputError(
            f"latents of {latent.width}x{latent.height}: Apple's network needs multiples of {step}",
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


def vae(
    checkpoint: Checkpoint, component: str, resolution: Resolution, dtype: np.dtype
) -> Traceable:
    """The decoder or encoder of diffusers' AutoencoderKL: `z` → image, or `x` → latent."""
    from diffusers import AutoencoderKL

    part = checkpoint.part(component)
    checkpoint.vae.latent_size(resolution)  # or an error
    whole = _load(lambda: AutoencoderKL.from_config(dict(part.config)), part)
    # One half is enough to trace; a quantizing convolution may be absent.
    if COMPONENTS[component].kind == "vae_decoder":
        halves = [whole.post_quant_conv, whole.decoder]
    else:
        halves = [whole.encoder, whole.quant_conv]
    network = nn.Sequential(*(h for h in halves if h is not None)).eval()
    return network, _ones(checkpoint, component, resolution, dtype)


def text_encoder(checkpoint: Checkpoint, component: str) -> Traceable:
    """A CLIP text encoder: `input_ids` [1, 77] → hidden and pooled states."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    part = checkpoint.part(component)
    projected = checkpoint.text_encoders[component].projection is not None
    settings = CLIPTextConfig.from_dict(dict(part.config))
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    network = _TextEncoder(_load(lambda: cls(settings), part), projected)
    return network.eval(), _ones(checkpoint, component, None, np.dtype(np.float32))


def _ones(
    checkpoint: Checkpoint, component: str, resolution: Resolution | None, dtype: np.dtype
) -> dict[str, np.ndarray]:
    shapes, _ = checkpoint.shapes(component, resolution)
    return {name: np.ones(shape, dtype) for name, shape in shapes.items()}


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
