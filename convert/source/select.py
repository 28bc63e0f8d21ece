"""Which files of a repo a conversion reads: a pure function of the listing.

Hub repos hold the same weights many times over (.bin, ONNX, Flax, OpenVINO, single-file copies);
one set per folder is enough. Which one is not ours to decide: it is what diffusers loads of `unet`
and `vae`, and transformers of the text encoders; safetensors, and pickles where there are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from convert.components import SUBFOLDERS
from convert.errors import InputError, nearest
from convert.files.json_files import kind, parse_json, require_object, shown

Read = Callable[[str], bytes]  # the content of a small file of the listing

SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
WeightsSuffix = Literal["safetensors", "bin"]

# The stem of weight files, by the library that wrote them.
_STEMS: dict[WeightsSuffix, dict[str, str]] = {
    "safetensors": {"diffusers": "diffusion_pytorch_model", "transformers": "model"},
    "bin": {"diffusers": "diffusion_pytorch_model", "transformers": "pytorch_model"},
}
FOLDERS = (*SUBFOLDERS, "scheduler", "tokenizer", "tokenizer_2")
_TOKENIZER = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class File:
    """One file: path relative to its repo or folder, size in bytes, digests where known.

    `etag` is what the Hub and its cache call the content: the SHA-256 of a file in LFS, the git
    blob id of any other.
    """

    name: str
    size: int
    sha256: str | None = None
    etag: str = ""


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one folder: one file, or the shards of an index."""

    variant: str | None  # what `from_pretrained` calls the set: fp16, or None
    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)  # the index's: tensor → shard


def select_files(
    siblings: Sequence[str], read: Read, *, without: Collection[str] = ()
) -> list[str]:
    """The files of an SDXL repo that a conversion reads, in one order for every listing.

    Args:
        without: folders of networks that come from elsewhere.

    Raises:
        InputError: the listing is no diffusers SDXL layout, or a folder lacks weights.
    """
    names = set(siblings)
    if "model_index.json" not in names:
        singles = sorted(name for name in names if is_single(name))
        if len(singles) == 1:
            return [*singles, *_texts(names)]
        if singles:
            raise InputError(
                f"{len(singles)} single files here, and no model_index.json: "
                f"{', '.join(singles[:12])}{', …' if len(singles) > 12 else ''}",
                hint="Say which one: `file` in a recipe, or its own path or URL.",
            )
        found = ", ".join(sorted(names)[:6]) or "nothing"
        raise InputError(
            f"no checkpoint here: no model_index.json, found {found}",
            hint="Give a folder or repo that holds unet/, vae/, text_encoder_2/, tokenizer_2/, or "
            "a .safetensors or .ckpt file.",
        )
    chosen = ["model_index.json", "scheduler/scheduler_config.json"]
    chosen += _texts(names)
    for folder, spec in SUBFOLDERS.items():
        if folder in without:
            continue
        if not spec.is_optional or any(n.startswith(f"{folder}/") for n in names):
            weights = weight_files(names, folder, read)
            chosen += [f"{folder}/config.json", weights.index or "", *weights.files]
    for folder in ("tokenizer", "tokenizer_2"):
        held = [f"{folder}/{n}" for n in _TOKENIZER if f"{folder}/{n}" in names]
        usable = {f"{folder}/vocab.json", f"{folder}/merges.txt"} <= set(held)
        wanted = folder == "tokenizer_2" or "text_encoder/config.json" in chosen
        if wanted and not usable and f"{folder}/tokenizer.json" not in held:
            raise InputError(
                f"{folder}/ has neither vocab.json and merges.txt nor tokenizer.json",
                hint="Copy the folder from stabilityai/stable-diffusion-xl-base-1.0.",
            )
        chosen += held
    return sorted(names.intersection(chosen))


def select_one(file: str, siblings: Sequence[str], read: Read) -> list[str]:
    """The file of that name, and what is said of the repo; InputError if it is not there."""
    if file in siblings:
        return [file, *_texts(siblings)]
    near = nearest(file, sorted(siblings))
    raise InputError(
        f"no file {file} here; there are {', '.join(sorted(siblings)[:12]) or 'none'}",
        hint=f"Did you mean {near}?" if near else None,
    )


def select_vae(siblings: Sequence[str], read: Read) -> list[str]:
    """The files of a repo's VAE: of its folder, of the repo itself, or the only single file.

    Repos that hold a VAE alone have config.json at the top, and often the same as single files.

    Raises:
        InputError: there is none, or there are several single files.
    """
    names = set(siblings)
    folder = vae_folder(names)
    if folder is not None:
        place = f"{folder}/" if folder else ""
        weights = weight_files(names, folder, read)
        chosen = [f"{place}config.json", weights.index or "", *weights.files]
        return sorted(names.intersection([*chosen, "model_index.json", *_texts(names)]))
    singles = sorted(name for name in names if is_single(name))
    if len(singles) == 1:
        return [*singles, *_texts(names)]
    found = ", ".join(singles[:12] or sorted(names)[:6]) or "nothing"
    raise InputError(
        f"{len(singles)} single files here, and no config.json of a VAE: {found}"
        if singles
        else f"no VAE here: neither config.json nor a folder vae/, found {found}",
        hint="Give the path or the address of the file that is meant."
        if singles
        else "Give a .safetensors file, or a folder or repo that holds a VAE, such as "
        "madebyollin/sdxl-vae-fp16-fix.",
    )


def vae_folder(names: Collection[str]) -> str | None:
    """The folder of a listing that holds a VAE in diffusers' layout: vae, or "" for the top."""
    if "vae/config.json" in names or "model_index.json" in names:
        return "vae"
    return "" if "config.json" in names else None


def is_single(name: str) -> bool:
    """Whether a file, not in a folder, may be a whole checkpoint, by what it is called."""
    return "/" not in name and name.lower().endswith(SINGLE)


def _texts(names: Collection[str]) -> list[str]:
    """The card and the licences."""
    return [n for n in names if n == "README.md" or ("/" not in n and n.startswith("LICENSE"))]


def weight_files(names: Collection[str], folder: str, read: Read) -> WeightFiles:
    """The one set of files that is the weights of `folder`; "" is a VAE's own repo.

    Safetensors go before pickles (`.bin`), and the variant fp16 before full precision, unless a
    shard of it is missing. Within a variant, diffusers follows an index that is there, and
    transformers takes a single file before it.
    Sources: diffusers `ModelMixin.from_pretrained`, transformers `_get_resolved_checkpoint_files`.

    Raises:
        InputError: there is no whole set that they load, or an index is damaged.
    """
    incomplete: list[InputError] = []
    for suffix in _STEMS:
        for variant in ("fp16", None):
            try:
                found = _set_of(names, folder, variant, suffix, read)
            except _ShardMissing as error:
                incomplete.append(error)
                continue
            if found is not None:
                return found
        if incomplete:  # it is named, whatever else there may be
            raise InputError(incomplete[-1].problem, hint=incomplete[-1].hint)
    raise _no_weights(names, folder)


class _ShardMissing(InputError):
    """An index names a shard that is not there."""


def _set_of(
    names: Collection[str], folder: str, variant: str | None, suffix: WeightsSuffix, read: Read
) -> WeightFiles | None:
    """The set of one variant and kind, if it is there; raises _ShardMissing if not all of it is."""
    library = SUBFOLDERS[folder or "vae"].library
    stem, of_diffusers = _STEMS[suffix][library], library == "diffusers"
    place, infix = f"{folder}/" if folder else "", f".{variant}" if variant else ""
    single = f"{place}{stem}{infix}.{suffix}"
    indexes = [f"{place}{stem}.{suffix}.index{infix}.json"]
    if variant and of_diffusers:  # an older spelling, which it still reads
        indexes.append(f"{place}{stem}.{suffix}{infix}.index.json")
    index = next((name for name in indexes if name in names), None)
    if index is None or (single in names and not of_diffusers):
        return WeightFiles(variant, (single,)) if single in names else None
    weight_map = _weight_map(index, suffix, read)
    shards = [f"{place}{name}" for name in sorted(set(weight_map.values()))]
    missing = [name for name in shards if name not in names]
    if not missing:
        return WeightFiles(variant, tuple(shards), index, weight_map)
    raise _ShardMissing(
        f"{index} names the shard {missing[0]}, which is not there",
        hint=f"diffusers follows the index: if {single} holds the weights, delete the index."
        if single in names
        else "Download the checkpoint again.",
    )


def _weight_map(index: str, suffix: WeightsSuffix, read: Read) -> dict[str, str]:
    """An index's shards by tensor; they lie beside it."""

    def bad(problem: str, hint: str | None = None) -> InputError:
        again = "Save or download the checkpoint again."
        return InputError(f"{index}: {problem}", hint=hint or again)

    try:
        values = require_object(parse_json(read(index), index), index)
    except InputError as error:
        raise bad(error.problem, error.hint) from None
    for key in ("metadata", "weight_map"):  # neither library does without them
        if key not in values:
            raise bad(f"`{key}` is missing")
        if not isinstance(values[key], dict):
            raise bad(f"`{key}` is {kind(values[key])}; allowed is an object")
    weight_map: dict[str, str] = values["weight_map"]
    if not weight_map:
        raise bad("`weight_map` names no tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(rf"[^/\\\0]+\.{suffix}", shard):
            raise bad(
                f"`weight_map` gives tensor {shown(tensor)} to {kind(shard)}; allowed is the name "
                f"of a .{suffix} file beside the index"
            )
    return weight_map


def _no_weights(names: Collection[str], folder: str) -> InputError:
    """What lies in `folder` instead of weights, and what to do about it."""
    library = SUBFOLDERS[folder or "vae"].library
    stem, pickle = (_STEMS[suffix][library] for suffix in ("safetensors", "bin"))
    place = f"{folder}/" if folder else ""
    inside = sorted(name for name in names if name.casefold().startswith(place))
    ours = (f"{place}{stem}", f"{place}{pickle}")
    held = [name for name in inside if name.casefold().startswith(ours)]
    held += [
        name
        for name in inside
        if name not in held
        and (name.casefold().endswith(".safetensors") or "pytorch_model" in name.casefold())
    ]
    listed = [name.removeprefix(place) for name in held]
    if any(re.search(r"-\d+-of-\d+(\.\w+)?\.(safetensors|bin)$", name) for name in listed):
        hint = (
            f"Shards are found by their index, which is called {stem}.safetensors.index.json "
            f"({pickle}.bin.index.json for .bin), or {stem}.safetensors.index.fp16.json for those "
            "called fp16."
        )
    elif any(n.casefold().endswith((".safetensors", ".bin")) for n in listed):
        hint = (
            f"diffusers and transformers load {stem}.safetensors or {stem}.fp16.safetensors, and "
            f"{pickle}.bin where there is neither."
        )
    elif listed:
        hint = (
            "Save it with diffusers' save_pretrained, which writes safetensors, or look for a "
            "revision or repo that holds them."
        )
    else:
        hint = "SDXL has unet/, vae/, text_encoder_2/ (and text_encoder/, but for the refiner)."
    return InputError(
        f"{folder or 'the repo'}/ has no complete weights, "
        f"found {', '.join(listed[:6]) or 'nothing'}",
        hint=hint,
    )
