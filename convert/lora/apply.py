"""A checkpoint with LoRAs merged into it: the same `Checkpoint`, whose tensors are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedLora, add_file
from convert.errors import InputError
from convert.lora.adapter import LoraAdapter
from convert.lora.family import made_for
from convert.lora.fits import Misfit
from convert.lora.kinds import KINDS, require_fit, title
from convert.lora.merge import LoraChange, MergedTensor
from convert.lora.names import NamedModule, module_names
from convert.lora.read import LoraFile, read_lora


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how strongly it is to be merged."""

    path: Path
    scale: float = 1.0  # of the UNet
    text_scale: float | None = None  # of the text encoders; as the UNet's if None

    def strength(self, part: str) -> float:
        """The strength for a part of a checkpoint."""
        return self.scale if part == "unet" or self.text_scale is None else self.text_scale


def apply(
    checkpoint: Checkpoint, loras: Sequence[Lora]
) -> tuple[Checkpoint, tuple[AppliedLora, ...]]:
    """Merge LoRAs into a checkpoint, in order; nothing but headers and single numbers is read.

    A tensor that no LoRA changes, or only with strength 0, stays as it is.

    Returns:
        The checkpoint, whose `files` and `loras` have these, and what became of each of them.

    Raises:
        InputError: a file that `read_lora` refuses, a module that the checkpoint lacks, or shapes
            that do not fit it; names file and module.
    """
    names = module_names(checkpoint)
    files = dict(checkpoint.files)
    changes: dict[tuple[str, str], list[LoraChange]] = {}
    merged = []
    for lora in loras:
        _require_finite(lora)
        file = read_lora(lora.path)
        kinds: dict[str, dict[str, int]] = {}
        for (part, tensor), adapter in _targets(checkpoint, names, file).items():
            of_kind = kinds.setdefault(title(adapter), {})
            of_kind[part] = of_kind.get(part, 0) + 1
            if strength := lora.strength(part):
                changes.setdefault((part, tensor), []).append(LoraChange(adapter, strength))
        kinds = {
            kind: {part: found[part] for part in checkpoint.parts if part in found}
            for kind, found in kinds.items()
        }
        name = add_file(files, "loras", lora.path)
        unet, text = lora.strength("unet"), lora.strength("text_encoder")
        merged.append(AppliedLora(name, unet, text, kinds, file.ignored, file.facts))
    parts = dict(checkpoint.parts)
    for part in dict.fromkeys(part for part, _ in changes):
        tensors = dict(parts[part].tensors)
        for (owner, name), found in changes.items():
            if owner == part:
                base = tensors[name]
                tensors[name] = MergedTensor(base, tuple(found), base.shape)
        parts[part] = replace(parts[part], tensors=tensors)
    told = (*checkpoint.loras, *merged)
    return replace(checkpoint, parts=parts, files=files, loras=told), tuple(merged)


def _require_finite(lora: Lora) -> None:
    for name, value in (("scale", lora.scale), ("text_scale", lora.text_scale)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"`{name}` is {value}, not a finite number", where=lora.path)


def _targets(
    checkpoint: Checkpoint, names: Mapping[str, NamedModule], file: LoraFile
) -> dict[tuple[str, str], LoraAdapter]:
    """The tensor that each adapter changes, by part and name; it fits."""
    found: dict[tuple[str, str], LoraAdapter] = {}
    for adapter in file.adapters:
        module = names.get(adapter.module)
        if module is None:
            raise _stranger(checkpoint, names, file, adapter)
        is_bias = KINDS[adapter.kind].is_of_bias
        name = f"{module.name}.{'bias' if is_bias else 'weight'}"
        tensor = checkpoint.parts[module.part].tensors.get(name)
        if tensor is None:
            problem = f"module `{adapter.module}` changes `{name}`, which the {module.part} lacks"
            raise InputError(problem, where=file.path)
        other = found.setdefault((module.part, name), adapter)
        if other is not adapter:
            raise InputError(
                f"modules `{other.module}` and `{adapter.module}` are the same, in two spellings",
                where=file.path,
                hint="It is not known whether both are meant to count: remove one of them.",
            )
        try:
            require_fit(adapter, tensor.shape)
        except Misfit as misfit:
            raise _other_family(checkpoint, file) or InputError(
                f"module `{adapter.module}` does not fit this checkpoint: {misfit}",
                where=file.path,
                hint="It is made for another checkpoint, or damaged.",
            ) from None
    return found


def _other_family(checkpoint: Checkpoint, file: LoraFile) -> InputError | None:
    width = checkpoint.part("unet").config.get("cross_attention_dim")
    family = made_for(file.adapters, file.facts, width)
    if family is None:
        return None
    here = "SDXL's refiner" if "text_encoder" not in checkpoint.parts else "SDXL"
    return InputError(
        f"a LoRA for {family}, and this checkpoint is {here}: nothing can be merged",
        where=file.path,
        hint="A LoRA works on the family that it was trained on alone; look for one made for "
        f"{here}.",
    )


def _stranger(
    checkpoint: Checkpoint, names: Mapping[str, NamedModule], file: LoraFile, adapter: LoraAdapter
) -> InputError:
    other = _other_family(checkpoint, file)
    if other is not None:
        return other
    unknown = sum(a.module not in names for a in file.adapters)
    return InputError(
        f"module `{adapter.module}` matches nothing in this checkpoint"
        + (f", nor do {unknown - 1} more of {len(file.adapters)}" if unknown > 1 else ""),
        where=file.path,
        hint="Nothing of a LoRA is left out in silence. Is it made for SDXL, and for this kind of "
        "checkpoint (base, refiner)?",
    )
