"""LoRAs in the reference: by diffusers and peft where they are right, else our merged values.

diffusers reads plain LoRAs in its own spellings and kohya's, with one alpha in a file. Alphas that
differ by module go wrong there, DoRA's magnitudes are dropped, and some spellings are left out, all
in silence (`tests/convert/lora/test_apply.py` shows each); other kinds it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.errors import InputError
from convert.lora.adapter import LoraAdapter
from convert.lora.merge import LoraChange, MergedTensor
from convert.process.interrupts import require_uninterrupted

_READ = ("lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_", "unet.", "text_encoder")
_FORGOTTEN = "lora_unet_add_embedding"


def unmerged(part: Part) -> Part:
    """The part as its files have it; the same object if no LoRA is in it."""
    if not any(isinstance(t, MergedTensor) for t in part.tensors.values()):
        return part
    tensors = {n: t.base if isinstance(t, MergedTensor) else t for n, t in part.tensors.items()}
    return replace(part, tensors=tensors)


def how_merged(checkpoint: Checkpoint) -> str:
    """How the reference gets its LoRAs, in words; empty where there are none."""
    if not _changes(checkpoint.parts.values()):
        return ""
    reason = _why_not(checkpoint)
    if reason is None:
        return "the reference has its LoRAs merged by diffusers and peft"
    return f"the reference has the merged values of this tool's reader, because {reason}"


def merge_into(model: torch.nn.Module, checkpoint: Checkpoint, part: Part) -> None:
    """Merge the LoRAs of `part` into a model that was loaded without them."""
    if _why_not(checkpoint) is None:
        _merge_by_peft(model, checkpoint, part)
        return
    own = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in part.tensors.items():
            if isinstance(tensor, MergedTensor):
                value = torch.from_numpy(tensor.read(np.float32))
                own[name].copy_(value.reshape(own[name].shape))


def _changes(parts: Any) -> list[LoraChange]:
    tensors = [t for part in parts for t in part.tensors.values()]
    return [c for tensor in tensors if isinstance(tensor, MergedTensor) for c in tensor.changes]


def _why_not(checkpoint: Checkpoint) -> str | None:
    """Why diffusers cannot merge what is in the checkpoint; None if it can."""
    if find_spec("peft") is None:
        return "peft is not installed"
    alphas: dict[Path, set[float]] = {}
    projections: dict[tuple[Path, str], set[str]] = {}
    for change in _changes(checkpoint.parts.values()):
        adapter = change.adapter
        if adapter.kind != "lora" or adapter.tensors.keys() != {"up", "down"}:
            return f"diffusers cannot merge all of {adapter.path.name}"
        if not adapter.module.startswith(_READ) or adapter.module.startswith(_FORGOTTEN):
            return f"diffusers does not read all of {adapter.path.name}"
        if match := re.match(r"(lora_te\d)_.*self_attn_(\w+)_proj", adapter.module):
            projections.setdefault((adapter.path, match[1]), set()).add(match[2])
        alphas.setdefault(adapter.path, set()).add(_alpha(adapter))
    for part in checkpoint.parts.values():
        merged = [t for t in part.tensors.values() if isinstance(t, MergedTensor)]
        most = max((len(tensor.changes) for tensor in merged), default=0)
        if most > len(_order(part)):
            return "a LoRA is merged more than once"
    for (path, _), names in projections.items():
        if "out" not in names:  # by which it tells how the others are spelled
            return f"diffusers does not read all of {path.name}"
    for path, found in alphas.items():
        if len(found) > 1:
            return f"diffusers mistakes the alphas of {path.name}, which differ by module"
        if not _is_read(path, path.stat().st_mtime_ns):
            return f"diffusers cannot read {path.name}"
    return None


@lru_cache(8)
def _is_read(path: Path, _changed: int) -> bool:
    """Whether diffusers understands the names of a LoRA file: it raises whatever it likes."""
    from diffusers import StableDiffusionXLPipeline as Pipeline
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    try:
        state, _ = Pipeline.lora_state_dict(
            path.parent, weight_name=path.name, local_files_only=True
        )
        for part in dict.fromkeys(name.partition(".")[0] for name in state):
            own = {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(part)}
            if part == "unet":
                convert_unet_state_dict_to_peft(own)
            else:
                convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
    except Exception:
        require_uninterrupted()
        return False
    return True


def _alpha(adapter: LoraAdapter) -> float:
    """The alpha of a module; without one it is the rank."""
    return round(adapter.scale * adapter.shape("down")[0], 6)


def _merge_by_peft(model: torch.nn.Module, checkpoint: Checkpoint, part: Part) -> None:
    """Merge as diffusers reads the files and peft computes; InputError if modules are left out."""
    from diffusers import StableDiffusionXLPipeline as Pipeline
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    order = _order(part)
    config = SimpleNamespace(**checkpoint.part("unet").config)
    for name, (path, _) in enumerate(order):
        state, alphas = Pipeline.lora_state_dict(
            path.parent, weight_name=path.name, unet_config=config, local_files_only=True
        )
        if part.name == "unet":
            Pipeline.load_lora_into_unet(state, alphas, model, adapter_name=str(name))
        else:
            Pipeline.load_lora_into_text_encoder(
                state, alphas, model, prefix=part.name, adapter_name=str(name)
            )
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    merged = [t for t in part.tensors.values() if isinstance(t, MergedTensor)]
    theirs = sum(len(layer.lora_A) for layer in layers)
    if theirs != (ours := sum(len(tensor.changes) for tensor in merged)):
        raise InputError(
            f"diffusers and peft merge {theirs} modules into {part.name}, where {ours} match",
            where=", ".join(str(path) for path, _ in order),
            hint="Without peft installed, the reference takes this tool's own merged values.",
        )
    with torch.no_grad():
        for layer in layers:
            weight = layer.get_base_layer().weight
            total = weight.float()
            for name, (_, strength) in enumerate(order):
                if str(name) in layer.lora_A:
                    layer.lora_A[str(name)].float()
                    layer.lora_B[str(name)].float()
                    total = total + strength * layer.get_delta_weight(str(name)).float()
            weight.copy_(total)
    recurse_remove_peft_layers(model)


def _order(part: Part) -> Sequence[tuple[Path, float]]:
    """The LoRA files of a part with their strengths, each once for each time it is merged."""
    found: Mapping[tuple[Path, float], None] = dict.fromkeys(
        (change.adapter.path, change.strength) for change in _changes([part])
    )
    return list(found)
