"""A network of a single file in PyTorch, by the libraries' own converters of names.

Our table of names has no part in it, so a mistake there shows as a difference. What the libraries
cannot read (scaled 8-bit floats, values that are merged as they are read, pickles with a trainer's
objects) is filled in with the values that our reader gives, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.derived import Rows, Transposed
from convert.checkpoint.tensors import StoredTensor
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.files.json_files import reason
from convert.process.interrupts import require_uninterrupted
from verify.reference.loras import unmerged

Weights = dict[str, Tensor]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


def reads_itself(part: Part) -> bool:
    """Whether the libraries read the file: plain values, in a file that torch or safetensors opens.

    Pickles are opened by torch, which refuses those that hold more than tensors.
    """
    return all(_is_plain(tensor) for tensor in part.tensors.values()) and _opens(part)


def _is_plain(tensor: Any) -> bool:
    if isinstance(tensor, Transposed | Rows):
        return _is_plain(tensor.tensor)
    return isinstance(tensor, StoredTensor)


def _opens(part: Part) -> bool:
    if _is_safetensors(part):
        return True
    try:
        _file_weights(part)
    except Exception:  # whatever the library says of a file that it does not take
        require_uninterrupted()
        return False
    return True


def how_loaded(checkpoint: Checkpoint) -> str:
    """How the reference reads what lies in single files, in words; empty where it is a folder."""
    single = [unmerged(part) for part in checkpoint.parts.values() if part.single]
    if not single:
        return ""
    ours = [part.name for part in single if not reads_itself(part)]
    theirs = [part.name for part in single if part.name not in ours]
    said = []
    if theirs:
        said.append(f"the reference reads {', '.join(theirs)} by diffusers' own converters")
    if ours:
        said.append(
            f"the reference has the values of {', '.join(ours)} from this tool's reader, because "
            "the libraries cannot read them"
        )
    return "; ".join(said)


def load_single(part: Part, component: str, dtype: torch.dtype) -> Any:
    """The network of a single file's part, with the config that this tool has found for it.

    Raises:
        InputError: the libraries cannot build it, or find a weight missing or left over.
    """
    assert part.single is not None
    try:
        with torch.device("meta"):
            model = _build(part, component)
        _fill_buffers(model)
        weights = _library_weights(part, model) if reads_itself(part) else _our_weights(part, model)
        found = model.load_state_dict(
            {k: v.to(dtype) for k, v in weights.items()}, strict=False, assign=True
        )
    except (MemoryError, InputError):
        raise
    except Exception as error:  # of the libraries, which raise whatever they like
        require_uninterrupted()
        raise InputError(
            f"{part.name} cannot be loaded by the libraries: {reason(error)}",
            where=part.path,
            hint="Its weights are read by diffusers' own converters, with SDXL's config.",
        ) from error
    for what, keys in (("lacks", found.missing_keys), ("has no place for", found.unexpected_keys)):
        if keys:
            raise InputError(
                f"{part.name}, as the libraries read it, {what} {len(keys)} tensors, the first "
                f"{keys[0]}",
                where=part.path,
                hint="The file is incomplete, or of another model.",
            )
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model.eval()


def _build(part: Part, component: str) -> Any:
    if COMPONENTS[component].kind == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        projected = COMPONENTS[component].projected
        kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
        return kind(CLIPTextConfig(**part.config))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kind = AutoencoderKL if part.name == "vae" else UNet2DConditionModel
    return kind.from_config(dict(part.config))


def _fill_buffers(model: torch.nn.Module) -> None:
    """The values of buffers that no checkpoint holds: CLIP's positions."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                assert name == "position_ids", name
                positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
                module.register_buffer(name, positions, persistent=False)


def _library_weights(part: Part, model: torch.nn.Module) -> Weights:
    """The part's weights as diffusers converts them, by the model's names."""
    from diffusers.loaders import single_file_utils as library

    single, config = part.single, dict(part.config)
    assert single is not None
    weights = _file_weights(part)
    if single.spelling == "LDM" and part.name == "unet":
        given = {_UNET + name: value for name, value in weights.items()}
        return dict(library.convert_ldm_unet_checkpoint(given, config))
    if single.spelling == "LDM":
        given = {_VAE + name: value for name, value in weights.items()}
        return dict(library.convert_ldm_vae_checkpoint(given, config))
    if single.spelling == "OpenCLIP":
        prefix = "conditioner.embedders.1.model."
        given = {prefix + name: value for name, value in weights.items()}
        found = dict(library.convert_open_clip_checkpoint(model, given, prefix))
        for name in ("text_projection.weight", "transformer.text_projection.weight"):
            if name in weights:  # ComfyUI's, which diffusers does not know
                found.pop(name.removeprefix("transformer."), None)
                found["text_projection.weight"] = weights[name]
        return _as_the_model_has_them(found, model)
    return _as_the_model_has_them(weights, model) if part.name != "unet" else weights


def _file_weights(part: Part) -> Weights:
    """The part's tensors as the library opens its file, by the names after its prefix."""
    single = part.single
    assert single is not None
    wanted = {single.full_name(name): name for name in single.tensors}
    if _is_safetensors(part):
        from safetensors import safe_open

        with safe_open(part.path, "pt") as file:
            return {name: file.get_tensor(full) for full, name in wanted.items()}
    held: Any = torch.load(part.path, map_location="cpu", weights_only=True, mmap=_is_zip(part))
    while isinstance(held, Mapping) and "state_dict" in held:
        held = held["state_dict"]
    return {name: held[full] for full, name in wanted.items()}


def _is_safetensors(part: Part) -> bool:
    with part.path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_zip(part: Part) -> bool:
    with part.path.open("rb") as file:
        return file.read(2) == b"PK"


def _our_weights(part: Part, model: torch.nn.Module) -> Weights:
    weights = {name: torch.from_numpy(t.read(np.float32)) for name, t in part.tensors.items()}
    own = model.state_dict()
    named = _as_the_model_has_them(weights, model) if "text" in part.name else weights
    return {k: v.reshape(own[k].shape) if k in own else v for k, v in named.items()}


def _as_the_model_has_them(weights: Mapping[str, Tensor], model: torch.nn.Module) -> Weights:
    """Weights by this version of the library's names, without what the model has no use for."""
    own = model.state_dict()
    spelled = {name.removeprefix("text_model."): name for name in own}
    unused = ["position_ids", "logit_scale"]
    unused += [] if "text_projection.weight" in own else ["text_projection.weight"]
    return {
        spelled.get(plain, name): value
        for name, value in weights.items()
        if not name.endswith(tuple(unused)) and (plain := name.removeprefix("text_model."))
    }
