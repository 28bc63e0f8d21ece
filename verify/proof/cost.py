"""How much a network has to compute at a size: multiplications, by its tensors' shapes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import BATCH, COMPONENTS, MAX_TOKENS
from convert.values import Resolution

# Tensors of a UNet that see no image: embeddings of the timestep and of sizes.
ONCE = ("time_embedding.", "add_embedding.", "time_emb_proj.")
LOOKED_UP = ("token_embedding", "position_embedding")


@dataclass(frozen=True)
class Cost:
    """Of one run of a network.

    Attributes:
        products: multiplications of its convolutions and matrices.
        attended: those of queries with keys, and of what comes of it with values.
        widest: elements of the largest matrix of attention weights.
        values: elements of its widest intermediate value.
    """

    products: int
    attended: int
    widest: int
    values: int

    @property
    def all(self) -> int:
        """All multiplications."""
        return self.products + self.attended


def cost_of(checkpoint: Checkpoint, component: str, size: Resolution | None) -> Cost:
    """The cost of one run of a component at a size; text encoders need none."""
    spec = COMPONENTS[component]
    batch = BATCH if spec.kind == "unet" else 1
    products = attended = widest = values = 0
    for name, tensor in checkpoint.component_tensors(component).items():
        if len(tensor.shape) < 2 or any(word in name for word in LOOKED_UP):
            continue
        places = _places(checkpoint, component, name, size)
        products += tensor.size * places
        values = max(values, tensor.shape[0] * places)
        if name.endswith(".to_q.weight"):
            keys = MAX_TOKENS if ".attn2." in name else places
            width = tensor.shape[0]
            attended += 2 * places * keys * width
            widest = max(widest, places * keys * _heads(checkpoint, component, name))
    return Cost(products * batch, attended * batch, widest * batch, values * batch)


def _places(checkpoint: Checkpoint, component: str, name: str, size: Resolution | None) -> int:
    """How often a weight is applied: to each token, or to each place that a convolution makes."""
    if COMPONENTS[component].kind == "text_encoder":
        return 1 if name.startswith("text_projection") else MAX_TOKENS
    assert size is not None
    height, width = checkpoint.vae.latent_size(size)
    if COMPONENTS[component].kind == "unet":
        if any(word in name for word in ONCE):
            return 1
        if re.search(r"\.attn2\.to_[kv]\.", name):
            return MAX_TOKENS
        level = 0 if name.startswith(("conv_in.", "conv_out.")) else checkpoint.unet.level(name)
        level += (".downsamplers." in name) - (".upsamplers." in name)
        for _ in range(level):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height * width
    doublings = _doublings(name, len(checkpoint.vae.channels) - 1)
    return height * width * 4**doublings


def _doublings(name: str, last: int) -> int:
    """How often latents are doubled to what a convolution of a VAE makes."""
    block = re.search(r"(up|down)_blocks\.(\d+)\.", name)
    if block is not None:
        number = int(block[2])
        level = number if block[1] == "up" else last - number
        return level + (".upsamplers." in name) - (".downsamplers." in name)
    return last if name in ("decoder.conv_out.weight", "encoder.conv_in.weight") else 0


def _heads(checkpoint: Checkpoint, component: str, name: str) -> int:
    if COMPONENTS[component].kind != "unet":
        return 1
    return checkpoint.unet.heads[checkpoint.unet.level(name)]
