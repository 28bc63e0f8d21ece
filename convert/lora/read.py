"""A LoRA file: which module it changes how, whoever has trained and saved it.

Keys and shapes decide; of the metadata, only PEFT's settings (rank, alpha, rs-LoRA) have a say, for
PEFT's files have no alphas of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.tensors import Tensor
from convert.checkpoint.weights import read_weights, tensor_names
from convert.errors import InputError
from convert.lora.adapter import OF_INPUTS, ROTATIONS, LoraAdapter
from convert.lora.kinds import KINDS, Kind, title
from convert.lora.settings import LoraSettings, glora_is_rank_stabilized, read_settings
from convert.lora.suffixes import NOT_APPLIED, REFUSED, ROLES, split

# What says where a LoRA comes from; other metadata, whole workflows among it, is nobody's concern.
FACTS = ("ss_output_name", "ss_base_model_version", "ss_network_module", "modelspec.architecture")


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds; nothing but headers and single numbers has been read."""

    path: Path
    adapters: tuple[LoraAdapter, ...]  # of weights and biases
    ignored: tuple[str, ...]  # what is not applied, in words
    facts: Mapping[str, str]  # of the metadata, those of FACTS

    def kinds(self) -> dict[str, int]:
        """How many modules are of each kind, as people call them."""
        return dict(Counter(title(adapter) for adapter in self.adapters))

    def to_json(self) -> dict[str, Any]:
        """What it is, without a checkpoint that it could match."""
        return {
            "schema": 1,
            "what": "LoRA",
            "kinds": self.kinds(),
            "ignored": list(self.ignored),
            "metadata": dict(self.facts),
        }

    def line(self) -> str:
        """The same for people, on one line."""
        counts = ", ".join(f"{n} {kind}" for kind, n in self.kinds().items())
        told = [f"LoRA, by module: {counts}", *(f"not applied: {what}" for what in self.ignored)]
        return "; ".join([*told, *(f"{name}: {value}" for name, value in self.facts.items())])


def holds_lora(path: Path) -> bool:
    """Whether most of a file's tensors are called as those of LoRAs; False for other files."""
    keys = tensor_names(path)
    found = [key for key in keys if (parts := split(key)) and parts[1] != ".weight"]
    return 2 * len(found) > len(keys)


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file of any of the spellings and kinds that we know.

    Raises:
        InputError: not a LoRA, a tensor that belongs to no kind, a module with tensors too few, of
            two kinds, or twice.
    """
    file = read_weights(path)
    tensors, metadata = file.tensors, file.metadata
    settings = read_settings(metadata, path)
    modules: dict[str, dict[str, Tensor]] = {}
    embeddings: dict[str, None] = {}
    counts = dict.fromkeys(NOT_APPLIED, 0)
    leftover = []
    for key, tensor in tensors.items():
        if key.startswith("bundle_emb."):
            embeddings[key.split(".")[1]] = None
            continue
        found = split(key)
        if found is None:
            leftover.append(key)
            continue
        name, suffix = found
        if suffix in REFUSED:
            raise InputError(
                f"tensor `{key}` is of {REFUSED[suffix]}, which cannot be merged yet",
                where=path,
                hint="Merge it with the program that trained it, and save the whole checkpoint.",
            )
        role = ROLES[suffix]
        if role in counts:
            counts[role] += 1
            continue
        if modules.setdefault(name, {}).setdefault(role, tensor) is not tensor:
            raise InputError(f"has `{name}{suffix}` in two spellings", where=path)
    _require_lora(path, modules, leftover, tensors)
    rank_stabilized = glora_is_rank_stabilized(metadata)
    adapters = [
        adapter
        for name, roles in modules.items()
        for adapter in _adapters(path, name, roles, settings, rank_stabilized=rank_stabilized)
    ]
    ignored = [f"embedding `{name}` inside the file" for name in embeddings]
    ignored += [
        f"{n} {'tensor' if n == 1 else 'tensors'} `.{role}`, which trainers do not read"
        for role, n in counts.items()
        if n
    ]
    facts = {name: metadata[name] for name in FACTS if name in metadata}
    return LoraFile(path, tuple(adapters), tuple(ignored), facts)


def _require_lora(
    path: Path,
    modules: Mapping[str, Mapping[str, Tensor]],
    leftover: list[str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Raises InputError for another kind of file, and for a tensor that belongs to no module."""
    if "lora_controlnet" in tensors:
        raise InputError("is a Control-LoRA, a ControlNet, not a LoRA", where=path)
    if any(roles.keys() - {"factors", "alpha"} for roles in modules.values()):
        if leftover:
            raise InputError(
                f"tensor `{leftover[0]}` is of no kind of LoRA that we know",
                where=path,
                hint="Nothing in a file is left out in silence. If you know what it is, tell us.",
            )
        return
    if {"clip_g", "clip_l", "emb_params", "string_to_param.*"} & tensors.keys():
        raise InputError("is an embedding (textual inversion), not a LoRA", where=path)
    plain = any("factors" in roles for roles in modules.values())
    what = "is a checkpoint, not a LoRA" if plain else "holds no LoRA"
    some = ", ".join(f"`{key}`" for key in [*tensors][:2])
    raise InputError(
        f"{what}: it has {f'tensors such as {some}' if some else 'no tensors'}",
        where=path,
        hint="A LoRA's tensors are called `….lora_up.weight`, `….lora_A.weight` and the like.",
    )


_NUMBERS = ("alpha", "on_input")  # roles that are single numbers, not tensors


def _adapters(
    path: Path,
    module: str,
    roles: Mapping[str, Tensor],
    settings: LoraSettings,
    *,
    rank_stabilized: bool,
) -> list[LoraAdapter]:
    """What a module's tensors are: a change of its weight, of its bias, or both."""
    for role, tensor in roles.items():
        if not tensor.size:
            raise InputError(f"tensor `{tensor.name}` is empty", where=path)
        if role in _NUMBERS and tensor.size != 1:
            raise InputError(f"tensor `{tensor.name}` is not a single number", where=path)
        if role not in _NUMBERS and not tensor.shape:
            raise InputError(f"tensor `{tensor.name}` is a single number", where=path)
    of_bias = [name for name, kind in KINDS.items() if kind.is_of_bias and kind.required & {*roles}]
    found, scale = [], 1.0
    of_weight = roles.keys() - {role for name in of_bias for role in KINDS[name].required}
    if of_weight or not of_bias:
        name = _kind(path, module, {role: roles[role] for role in of_weight})
        if "on_input" in roles and number(roles["on_input"]):
            name = OF_INPUTS
        tensors = {role: tensor for role, tensor in roles.items() if role in of_weight}
        adapter = LoraAdapter(name, module, path, _without_numbers(tensors), 1.0)
        scale = _scale(adapter, roles.get("alpha"), settings, rank_stabilized=rank_stabilized)
        found.append(LoraAdapter(name, module, path, adapter.tensors, scale))
    if len(of_bias) > 1:
        raise InputError(f"changes the bias of module `{module}` in two ways", where=path)
    for name in of_bias:
        (role,) = KINDS[name].required
        factor = scale if name == "bias" else 1.0
        found.append(LoraAdapter(name, module, path, {role: roles[role]}, factor))
    return found


def _without_numbers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {role: tensor for role, tensor in tensors.items() if role not in _NUMBERS}


def _kind(path: Path, module: str, tensors: Mapping[str, Tensor]) -> str:
    """The one kind that these tensors of a module's weight are of."""
    roles = set(tensors)
    fitting = [
        name
        for name, kind in KINDS.items()
        if kind.required <= roles <= kind.required | kind.optional and name != OF_INPUTS
    ]
    if "oft_blocks" in roles:
        axes = len(tensors["oft_blocks"].shape)
        fitting = [name for name in fitting if ROTATIONS[name] == axes]
        if not fitting:
            problem = f"`oft_blocks` of module `{module}` has {axes} axes; OFT has 3 and BOFT 4"
            raise InputError(problem, where=path)
    if len(fitting) == 1:
        return fitting[0]
    begun = [kind for kind in KINDS.values() if kind.required & roles]
    nearest = min(begun, key=lambda kind: _distance(kind, roles), default=None)
    names = ", ".join(sorted(f"`{tensor.name}`" for tensor in tensors.values()))
    if nearest is None or nearest.required <= roles:
        raise InputError(
            f"module `{module}` has tensors of no one kind of LoRA: {names}", where=path
        )
    missing = ", ".join(f"`{role}`" for role in sorted(nearest.required - roles))
    raise InputError(
        f"module `{module}` lacks {missing}, which a {nearest.title} has; it has {names}",
        where=path,
        hint="The file is incomplete, or was put together of parts: download it again.",
    )


def _distance(kind: Kind, roles: set[str]) -> tuple[int, int]:
    """How many of a module's tensors a kind has no use for, and how many it lacks."""
    return len(roles - kind.required - kind.optional), len(kind.required - roles)


def _scale(
    adapter: LoraAdapter, stored: Tensor | None, settings: LoraSettings, *, rank_stabilized: bool
) -> float:
    """What an adapter's product is multiplied by; of rotations, their constraint."""
    if adapter.kind in ROTATIONS:
        return number(stored) if stored else 0.0
    rank = KINDS[adapter.kind].rank(adapter)
    if (
        rank is None
    ):  # then nobody reads alpha, which LoKr's trainers set to 1e10: too much for fp16
        return 1.0
    if adapter.kind == "lora" and stored is None:
        return settings.scale(adapter.module, rank, has_magnitude=adapter.magnitude is not None)
    alpha = number(stored) if stored else 0.0
    if not alpha:  # to trainers, an alpha of 0 is that of the rank
        return 1.0
    return alpha / (math.sqrt(rank) if rank_stabilized and adapter.kind == "glora" else rank)


def number(tensor: Tensor) -> float:
    """The value of a tensor of one element, of any dtype."""
    return float(tensor.read(np.float32).reshape(-1)[0])
