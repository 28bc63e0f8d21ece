"""What tensors are called: LDM's names, and diffusers' and transformers', both ways.

One table for each network, from the structure of its blocks. Sources: diffusers' converters
(`diffusers.loaders.single_file_utils`), which the tests compare with, and the modules of
Stability-AI/generative-models, whose names these are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from convert.checkpoint.configs import CLIPConfig, PartConfig, UNetConfig, VAEConfig

Pair = tuple[str, str]  # what a module or tensor is called: (diffusers or transformers, LDM)

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET: tuple[Pair, ...] = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPENCLIP: tuple[Pair, ...] = (
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm", "ln_final"),
)
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# OpenCLIP has queries, keys and values in one tensor, one below the other.
FUSED = ("q_proj", "k_proj", "v_proj")
# OpenCLIP multiplies by its projection from the right, transformers has it as a layer's weight.
PROJECTION: Pair = ("text_projection.weight", "text_projection")


class KeyMap:
    """One network's names, both ways. A name that has no place in the network has no other."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = tuple(pairs)
        self._ldm = dict(self.pairs)
        self._diffusers = {ldm: name for name, ldm in self.pairs}

    def ldm(self, name: str) -> str | None:
        """The LDM name of a tensor or module that diffusers or transformers calls `name`."""
        return _renamed(name, self._ldm)

    def diffusers(self, name: str) -> str | None:
        """What diffusers or transformers calls the tensor or module of this LDM name."""
        return _renamed(name, self._diffusers)


def _renamed(name: str, names: dict[str, str]) -> str | None:
    """`name` with the longest of its dotted beginnings that is in `names` replaced."""
    end = len(name)
    while end > 0:
        if (other := names.get(name[:end])) is not None:
            return other + name[end:]
        end = name.rfind(".", 0, end)
    return None


@dataclass(frozen=True)
class UNetBlocks:
    """The structure of a UNet, as far as names depend on it; one entry a block, in its order."""

    layers: tuple[int, ...]  # resnets in each down block; an up block has one more
    up_attention: tuple[bool, ...]

    @staticmethod
    def of(config: UNetConfig) -> UNetBlocks:
        """The structure that a config describes."""
        attention = tuple(kind.startswith("CrossAttn") for kind in config.up_blocks)
        return UNetBlocks(tuple(config.layers), attention)

    @staticmethod
    def of_ldm(names: Collection[str]) -> UNetBlocks:
        """The structure that LDM names show (without `model.diffusion_model.`).

        Raises:
            ValueError: they show none, with what is odd.
        """
        downs, ups = (_numbers(names, side) for side in ("input_blocks", "output_blocks"))
        layers, attention = [0], []
        for number in range(1, len(downs)):
            if any(part.startswith("0.op.") for part in downs.get(number, ())):
                layers.append(0)
            else:
                layers[-1] += 1
        at = 0
        for count in (n + 1 for n in reversed(layers)):
            parts = {part for number in range(at, at + count) for part in ups.get(number, ())}
            attention.append(any(part.startswith("1.proj_in.") for part in parts))
            at += count
        if sorted(downs) != list(range(len(downs))) or sorted(ups) != list(range(at)):
            raise ValueError(
                f"its {len(downs)} input blocks want {at} output blocks, numbered from 0; it has "
                f"{len(ups)}"
            )
        return UNetBlocks(tuple(layers), tuple(attention))


def _numbers(names: Collection[str], side: str) -> dict[int, list[str]]:
    """What follows the numbers of blocks, by number."""
    found: dict[int, list[str]] = {}
    for name in names:
        if (match := re.match(rf"{side}\.(\d{{1,4}})\.", name)) is not None:
            found.setdefault(int(match[1]), []).append(name[match.end() :])
    return found


def unet_keys(blocks: UNetBlocks) -> KeyMap:
    """The names of a UNet; LDM's follow `model.diffusion_model.`, if anything."""
    return KeyMap((*_UNET, *_unet_blocks(blocks)))


def _unet_blocks(blocks: UNetBlocks) -> Iterator[Pair]:
    number, last = 1, len(blocks.layers) - 1
    for block, layers in enumerate(blocks.layers):
        for layer in range(layers):
            yield from _layer(f"down_blocks.{block}", layer, f"input_blocks.{number}")
            number += 1
        if block < last:
            yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    number = 0
    for block, layers in enumerate(reversed(blocks.layers)):
        for layer in range(layers + 1):
            yield from _layer(f"up_blocks.{block}", layer, f"output_blocks.{number}")
            number += 1
        if block < last:
            place = 2 if blocks.up_attention[block] else 1  # the last in the block of modules
            yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{place}.conv"


def _layer(block: str, layer: int, ldm: str) -> Iterator[Pair]:
    yield from _resnet(f"{block}.resnets.{layer}", f"{ldm}.0")
    yield f"{block}.attentions.{layer}", f"{ldm}.1"


def _resnet(name: str, ldm: str) -> Iterator[Pair]:
    yield from ((f"{name}.{own}", f"{ldm}.{other}") for own, other in _RESNET.items())


def vae_keys(levels: int, layers: int) -> KeyMap:
    """The names of a VAE; LDM's follow `first_stage_model.`, if anything.

    Args:
        levels: sizes of the picture inside.
        layers: resnets in each of the encoder's blocks; the decoder's have one more.
    """
    return KeyMap(_vae(levels, layers))


def _vae(levels: int, layers: int) -> Iterator[Pair]:
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for half in ("encoder", "decoder"):
        for name, ldm in (("conv_in",) * 2, ("conv_out",) * 2, ("conv_norm_out", "norm_out")):
            yield f"{half}.{name}", f"{half}.{ldm}"
        for number in range(2):
            yield f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}"
        for name, ldm in _VAE_ATTENTION.items():
            yield f"{half}.mid_block.attentions.0.{name}", f"{half}.mid.attn_1.{ldm}"
    for level in range(levels):
        up = levels - 1 - level  # LDM counts a decoder's blocks from the picture inwards
        for layer in range(layers):
            yield from _vae_resnet("encoder.down", level, level, layer)
        for layer in range(layers + 1):
            yield from _vae_resnet("decoder.up", up, level, layer)
        if level < levels - 1:
            name = f"encoder.down_blocks.{level}.downsamplers.0"
            yield name, f"encoder.down.{level}.downsample"
            yield f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{up}.upsample"


def _vae_resnet(side: str, ldm_level: int, level: int, layer: int) -> Iterator[Pair]:
    name, ldm = f"{side}_blocks.{level}.resnets.{layer}", f"{side}.{ldm_level}.block.{layer}"
    yield from ((name, ldm), (f"{name}.conv_shortcut", f"{ldm}.nin_shortcut"))


def openclip_keys(layers: int) -> KeyMap:
    """The names of text encoder 2, but for `FUSED` and `PROJECTION`, whose values are arranged
    otherwise; OpenCLIP's follow `conditioner.embedders.1.model.`, if anything."""
    return KeyMap(
        (
            *_OPENCLIP,
            *(
                (f"encoder.layers.{layer}.{name}", f"transformer.resblocks.{layer}.{ldm}")
                for layer in range(layers)
                for name, ldm in _OPENCLIP_LAYER.items()
            ),
        )
    )


def fused_keys(layer: int, kind: str) -> tuple[str, tuple[str, ...]]:
    """OpenCLIP's name of queries, keys and values in one, and the three that transformers has.

    Args:
        kind: weight or bias.
    """
    attention = f"encoder.layers.{layer}.self_attn"
    return (
        f"transformer.resblocks.{layer}.attn.in_proj_{kind}",
        tuple(f"{attention}.{name}.{kind}" for name in FUSED),
    )


def keys_of(config: PartConfig) -> KeyMap:
    """The names of the network that a config describes; of a `CLIPConfig`, OpenCLIP's."""
    if isinstance(config, UNetConfig):
        return unet_keys(UNetBlocks.of(config))
    if isinstance(config, VAEConfig):
        return vae_keys(len(config.channels), config.layers)
    assert isinstance(config, CLIPConfig)
    return openclip_keys(config.layers)
