"""What a file of tensors holds: which parts of SDXL, in whose names, and what is left out.

Told by names and shapes, never by the file's own name. LDM's names are those of Stability AI's
code, which nearly all single files have; ComfyUI saves bare UNets with and without their prefix.
Sources: ComfyUI `comfy/model_detection.py`, `comfy/sd.py`; diffusers
`diffusers.loaders.single_file_utils`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from convert.checkpoint.tensors import Tensor
from convert.errors import InputError
from convert.known.families import other_family

Spelling = Literal["LDM", "diffusers", "OpenCLIP", "transformers"]

PREFIXES: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.", "unet"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    ("conditioner.embedders.0.model.", "text_encoder_2"),  # a refiner's only one
    ("clip_l.transformer.", "text_encoder"),
    ("clip_g.transformer.", "text_encoder_2"),
)
UNET = ("unet", "model.diffusion_model.")
EMA_USED = "plain weights; the EMA ones are used"  # why these are not
REFINERS = "conditioner.embedders.0.model."
_BARE: tuple[tuple[str, str], ...] = (  # text encoders are told apart by their size
    (
        r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out|conv_in|conv_out|"
        r"conv_norm_out|down_blocks|mid_block|up_blocks|time_embedding|add_embedding)\.",
        "unet",
    ),
    (r"(text_model\.)?(embeddings|encoder\.layers|final_layer_norm)\.", "text"),
    (r"(transformer\.resblocks|token_embedding|ln_final)\.|positional_embedding$", "text"),
    (r"text_projection(\.weight)?$", "text"),
    (r"(encoder|decoder|quant_conv|post_quant_conv)\.", "vae"),
)
# What precedes EMA weights in LDM's checkpoints; behind it is the plain one's name without `model.`
# and its dots. Source: generative-models, `sgm.modules.ema.LitEma`.
_EMA, _PLAIN = "model_ema.", "model."
# Tensors that shape nothing, and why; the first that matches counts.
_IGNORED: tuple[tuple[str, str], ...] = (
    (r"model_ema\.", "EMA weights; the plain ones are used"),
    (r"(.*\.)?embeddings\.position_ids$", "the positions 0 to 76"),
    (r"(.*\.)?logit_scale$", "of CLIP's training"),
    (
        r"denoiser\.sigmas$|(alphas|sqrt|log_one_minus|posterior)_\w+$|betas$|log_betas$",
        "the noise schedule, which schedulers compute",
    ),
    (r"(first_stage_model\.)?loss\.", "of the VAE's training"),
    (r"(conditioner\.embedders\.0|clip_l)\.transformer\.text_projection\.", "unused by SDXL"),
    (r"v_pred$|ztsnr$", "a mark of what the UNet predicts"),
)


@dataclass(frozen=True)
class FilePart:
    """The tensors of one network in a file.

    Attributes:
        name: unet, vae, text_encoder or text_encoder_2.
        spelling: whose names they have.
        prefix: what precedes these names in the file.
        tensors: by the names without it.
    """

    name: str
    spelling: Spelling
    prefix: str
    tensors: Mapping[str, Tensor]

    def full_name(self, name: str) -> str:
        """What the file calls the tensor of that name."""
        return self.tensors[name].name


@dataclass(frozen=True)
class FileLayout:
    """What a file holds."""

    parts: Mapping[str, FilePart]
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names, by why

    @property
    def marks(self) -> frozenset[str]:
        """The tensors that mark what the UNet predicts."""
        return frozenset(n for names in self.ignored.values() for n in names) & {"v_pred", "ztsnr"}


def recognise(tensors: Mapping[str, Tensor], where: Path, *, ema: bool = False) -> FileLayout:
    """The parts of SDXL among a file's tensors.

    Args:
        ema: take the UNet's EMA weights in place of the plain ones.

    Raises:
        InputError: the file is of another family or kind, which is named; a tensor belongs to no
            part, or a part is there twice.
    """
    other = other_family({name: tensor.shape for name, tensor in tensors.items()})
    if other is not None:
        raise InputError(
            f"is {other.what}, not SDXL: tensor `{other.sign}` tells", where=where, hint=other.hint
        )
    _require_plain(tensors, where)
    averaged = _averaged(tensors, where) if ema else {}
    taken = {tensor.name for tensor in averaged.values()}
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    ignored: dict[str, list[str]] = {}
    lost: list[str] = []
    for name, tensor in tensors.items():
        if name in averaged:
            ignored.setdefault(EMA_USED, []).append(name)
            found.setdefault(UNET, {})[name.removeprefix(UNET[1])] = averaged[name]
        elif name in taken:
            continue
        elif (why := _why_ignored(name)) is not None:
            ignored.setdefault(why, []).append(name)
        elif (place := _place(name)) is not None:
            found.setdefault(place, {})[name.removeprefix(place[1])] = tensor
        else:
            lost.append(name)
    if not tensors:
        hint = "The file was saved without weights: download it again."
        raise InputError("holds no tensors", where=where, hint=hint)
    if not found:
        names = ", ".join(f"`{name}`" for name in list(tensors)[:3])
        raise InputError(
            f"holds no part of SDXL that is known by its tensors: {names}",
            where=where,
            hint="A checkpoint is a .safetensors or .ckpt file, or a folder in diffusers' layout.",
        )
    if lost:
        raise InputError(
            f"tensor `{lost[0]}` belongs to no part of SDXL"
            + (f", nor do {len(lost) - 1} more" if lost[1:] else ""),
            where=where,
            hint="It could change what the model computes, so it is not ignored. If tools load "
            "the file as it is, please open an issue with the tensor's name.",
        )
    parts: dict[str, FilePart] = {}
    for (kind, prefix), held in found.items():
        name = _text_encoder(held) if kind == "text" else kind
        if name in parts:
            raise InputError(
                f"holds two of {name}, under `{parts[name].prefix}` and `{prefix}`",
                where=where,
                hint="Which one is meant cannot be told: save it with one of them.",
            )
        parts[name] = FilePart(name, _spelling(name, held), prefix, held)
    return FileLayout(parts, {why: tuple(names) for why, names in ignored.items()})


def _require_plain(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raises InputError for EMA weights alone: their names have lost the dots."""
    first = next((name for name in tensors if name.startswith(f"{_EMA}diffusion_model")), None)
    if first is not None and not any(name.startswith(UNET[1]) for name in tensors):
        raise InputError(
            f"holds the UNet's EMA weights alone (`{first}`), not the plain ones, by which they "
            "are told apart",
            where=where,
            hint="Take a file that has both, or one that has the EMA weights as its only ones.",
        )


def _averaged(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The UNet's EMA weights by the names of the plain ones; InputError if one is missing."""
    plain = [name for name in tensors if name.startswith(UNET[1])]
    flat = {name: _EMA + name.removeprefix(_PLAIN).replace(".", "") for name in plain}
    lacking = [name for name in plain if flat[name] not in tensors]
    if lacking or not plain:
        which = f" of `{lacking[0]}`" if 0 < len(lacking) < len(plain) else ""
        raise InputError(
            f"holds no EMA weights{which}",
            where=where,
            hint="Leave out --ema, or `ema` in the recipe's [source]: the plain weights are what "
            "most tools draw with.",
        )
    return {name: tensors[flat[name]] for name in plain}


def _why_ignored(name: str) -> str | None:
    return next((why for pattern, why in _IGNORED if re.match(pattern, name)), None)


def _place(name: str) -> tuple[str, str] | None:
    """The part and the prefix of a tensor; the part of a bare text encoder is "text"."""
    for prefix, part in PREFIXES:
        if name.startswith(prefix):
            return part, prefix
    return next(((part, "") for pattern, part in _BARE if re.match(pattern, name)), None)


def _spelling(part: str, tensors: Mapping[str, Tensor]) -> Spelling:
    """Whose names a network's tensors have."""
    if part.startswith("text_encoder"):
        fused = any(name.startswith("transformer.resblocks.") for name in tensors)
        return "OpenCLIP" if fused else "transformers"
    theirs = ("down_blocks.", "up_blocks.", "encoder.down_blocks.", "decoder.up_blocks.")
    return "diffusers" if any(name.startswith(theirs) for name in tensors) else "LDM"


def _text_encoder(tensors: Mapping[str, Tensor]) -> str:
    """Which of SDXL's text encoders a bare file is: OpenCLIP's bigG, or CLIP's L."""
    names = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    table = names.get("embeddings.token_embedding.weight")
    widths = {768: "text_encoder", 1280: "text_encoder_2"}
    if table is not None and table.shape[1:] and table.shape[1] in widths:
        return widths[table.shape[1]]
    projected = any(name.startswith("text_projection") for name in names)
    return "text_encoder_2" if projected or "positional_embedding" in names else "text_encoder"
