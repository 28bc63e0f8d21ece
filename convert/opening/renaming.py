"""Every tensor under one name, however it was saved, so that the networks meet one spelling.

LDM's and OpenCLIP's names become diffusers' and transformers' (`convert.checkpoint.keys`). CLIP
loses the `text_model.` prefix and `position_ids` buffers, and VAE attention its old names
(`query`, `key`, `value`, `proj_attn`) and the shape of 1×1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoint.derived import Transposed, rows
from convert.checkpoint.keys import (
    PROJECTION,
    KeyMap,
    UNetBlocks,
    fused_keys,
    openclip_keys,
    unet_keys,
    vae_keys,
)
from convert.checkpoint.layout import FilePart
from convert.checkpoint.tensors import Tensor
from convert.errors import InputError

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def normalised(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that diffusers and transformers use today."""
    named = {}
    for key, tensor in tensors.items():
        if part.startswith("text_encoder"):
            key = key.removeprefix("text_model.")
            if key == "embeddings.position_ids":
                continue  # a buffer of older transformers: 0 … 76
        elif part == "vae":
            key = re.sub(
                r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.",
                lambda match: f"{match[1]}.{OLD_ATTENTION[match[2]]}.",
                key,
            )
            if ".attentions." in key and tensor.shape[2:] == (1, 1):
                tensor = tensor.reshape(tensor.shape[:2])
        if key in named:
            raise InputError(f"tensor `{key}` is there twice", where=tensor.path)
        named[key] = tensor
    return named


def under_library_names(part: FilePart, where: Path) -> dict[str, Tensor]:
    """The tensors of a file's part as diffusers and transformers call and shape them.

    Raises:
        InputError: a tensor has no place in such a network, or half of a VAE is missing.
    """
    if part.name == "vae":
        _require_halves(part, where)
    if part.spelling == "OpenCLIP":
        return _from_openclip(part, where)
    named = dict(part.tensors)
    if part.spelling == "LDM":
        keys = _ldm_keys(part, where)
        named = {}
        for name, tensor in part.tensors.items():
            named[_required(keys.diffusers(name), part, name, where)] = tensor
    if part.name == "text_encoder":  # CLIP's own projection, which SDXL does not use
        named = {n: t for n, t in named.items() if not n.startswith("text_projection")}
    return normalised(part.name, named)


def _require_halves(part: FilePart, where: Path) -> None:
    """Raises InputError for a VAE's decoder or encoder alone."""
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if not any(name.startswith(f"{half}.") for name in part.tensors):
            raise InputError(
                f"holds a VAE's {other} alone, and lacks its {half}",
                where=where,
                hint="Give the whole VAE: apps draw with the decoder, and begin image-to-image "
                "with the encoder.",
            )


def _ldm_keys(part: FilePart, where: Path) -> KeyMap:
    """The table of names of an LDM network, from its structure."""
    names = part.tensors
    if part.name == "unet":
        try:
            return unet_keys(UNetBlocks.of_ldm(names))
        except ValueError as error:
            raise InputError(
                f"its UNet has no structure of SDXL's: {error}",
                where=where,
                hint="The file is incomplete, or a UNet of another family.",
            ) from None
    levels, layers = (
        {int(m[1]) for m in map(re.compile(pattern).match, names) if m}
        for pattern in (r"encoder\.down\.(\d{1,3})\.", r"encoder\.down\.0\.block\.(\d{1,3})\.")
    )
    return vae_keys(len(levels), len(layers))


def _from_openclip(part: FilePart, where: Path) -> dict[str, Tensor]:
    pattern = re.compile(r"transformer\.resblocks\.(\d{1,3})\.")
    layers = {int(m[1]) for m in map(pattern.match, part.tensors) if m}
    keys = openclip_keys(len(layers))
    fused = {}
    for layer in range(len(layers)):
        for kind in ("weight", "bias"):
            whole, three = fused_keys(layer, kind)
            fused[whole] = three
    named: dict[str, Tensor] = {}
    for name, tensor in part.tensors.items():
        if name in fused:
            count, rest = divmod(tensor.shape[0] if tensor.shape else 0, 3)
            if rest or not count:
                raise InputError(
                    f"tensor `{part.prefix}{name}` has the shape {list(tensor.shape)}, no three "
                    "times a width",
                    where=where,
                )
            for number, own in enumerate(fused[name]):
                named[own] = rows(tensor, number * count, (number + 1) * count)
        elif name == PROJECTION[1]:
            # OpenCLIP multiplies from the right: sgm/modules/encoders/modules.py, `pool`.
            _once(named, PROJECTION[0], tensor)
            named[PROJECTION[0]] = Transposed(tensor)
        elif name.removeprefix("transformer.") == PROJECTION[0]:
            # ComfyUI's and Playground's, of transformers' orientation.
            _once(named, PROJECTION[0], tensor)
            named[PROJECTION[0]] = tensor
        else:
            named[_required(keys.diffusers(name), part, name, where)] = tensor
    return named


def _once(named: Mapping[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in named:
        raise InputError(
            f"tensor `{name}` is there twice, as `text_projection` and `text_projection.weight`",
            where=tensor.path,
        )


def _required(found: str | None, part: FilePart, name: str, where: Path) -> str:
    if found is None:
        raise InputError(
            f"tensor `{part.prefix}{name}` has no place in SDXL's {part.name}",
            where=where,
            hint="The file is damaged, or of a model that this tool does not know.",
        )
    return found
