"""A checkpoint in diffusers' layout: a folder with `model_index.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import SCHEDULER, Checkpoint, Part, embedding_rows
from convert.checkpoint.tensors import Tensor
from convert.checkpoint.weights import read_weights
from convert.components import SUBFOLDERS
from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import FileMissing, kind, read_bytes, read_object, readable, shown
from convert.opening.renaming import normalised
from convert.source.select import WeightFiles, select_files, weight_files
from convert.source.snapshot import require_target, select_local
from convert.tokenizer.clip import TOKENIZERS, Tokenizer, read_tokenizers

# Tensors that hold no weight, by which some trainers mark what a UNet predicts.
# Source: ComfyUI `comfy/supported_models.py`, `SDXL.model_type`.
MARKS = {
    "v_pred": "v-prediction (`prediction_type`: v_prediction)",
    "ztsnr": "zero terminal SNR (`rescale_betas_zero_snr`: true)",
    "edm_vpred.sigma_max": "v-prediction in EDM's scale",
    "edm_vpred.sigma_min": "v-prediction in EDM's scale",
    "edm_mean": "EDM",
    "edm_std": "EDM",
}


def _marked(tensor: Tensor) -> InputError:
    return InputError(
        f"tensor `{tensor.name}` is a mark, no weight: the UNet was trained for "
        f"{MARKS[tensor.name]}, which diffusers reads from scheduler_config.json alone",
        where=tensor.path,
        hint="Set it there, and save the UNet again with diffusers, which drops the mark.",
    )


def open_folder(
    path: Path, *, name: str | None = None, without: Collection[str] = ()
) -> Checkpoint:
    """Open the checkpoint in a folder with `model_index.json`; as `open_checkpoint`."""
    model_index = read_index(path)
    files = select_local(path, partial(select_files, without=without))
    wanted = {n: spec for n, spec in SUBFOLDERS.items() if n not in without}
    folders = [n for n in wanted if (path / n).is_dir()]
    missing = [n for n, spec in wanted.items() if not spec.is_optional and n not in folders]
    if missing:
        raise InputError(
            f"lacks the folder {', '.join(f'`{m}`' for m in missing)}",
            where=path,
            hint="An SDXL checkpoint has unet, vae, text_encoder_2 and (but for a refiner) "
            "text_encoder. Download it again.",
        )
    parts = {n: open_part(path, n, files) for n in folders}
    _require_sdxl(parts["unet"])
    return Checkpoint(
        path=path,
        name=name or readable(name_as_given(path)),
        files={file: path / file for file in files},
        parts=parts,
        tokenizers=_tokenizers(path, parts),
        scheduler=_json(path / SCHEDULER, default={}),
        model_index=model_index,
    )


def open_without_weights(path: Path, name: str) -> Checkpoint:
    """What a checkpoint says of itself, from a folder that holds its files but for the weights.

    Raises:
        InputError: a file is missing or not readable.
    """
    folders = [n for n in SUBFOLDERS if (path / n).is_dir()]
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    parts = {n: Part(n, path / n, _json(path / n / "config.json"), {}) for n in folders}
    return Checkpoint(
        path=path,
        name=name,
        files={file: path / file for file in files},
        parts=parts,
        tokenizers=_tokenizers(path, parts),
        scheduler=_json(path / SCHEDULER, default={}),
        model_index=_json(path / "model_index.json"),
    )


def _json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return read_object(path, infinities=path.name == SCHEDULER.name)
    except FileMissing as error:
        if default is not None:
            return default
        hint = "Download the checkpoint again."
        raise InputError(error.problem, where=path, hint=hint) from None


def read_index(path: Path) -> dict[str, Any]:
    """The model_index.json of a folder; raises InputError if it is no checkpoint of SDXL."""
    file = path / "model_index.json"
    require_target(file)
    if not file.exists():
        kept = [n for n in SUBFOLDERS if (path / n).is_dir()]
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise InputError(
            "no model_index.json, so not a checkpoint in diffusers' layout",
            where=path,
            hint=f"The folder holds: {found}."
            + (" Download model_index.json again." if kept else ""),
        )
    index = _json(file)
    pipeline = index.get("_class_name", "?")
    if not isinstance(pipeline, str):
        problem = f"`_class_name` is {shown(pipeline)}; allowed is the name of a pipeline"
        raise InputError(problem, where=file)
    if not pipeline.startswith(("StableDiffusionXL", "LatentConsistencyModelXL", "AnimagineXL")):
        known = {
            "StableDiffusionPipeline": "Stable Diffusion 1 or 2",
            "StableDiffusion3Pipeline": "Stable Diffusion 3",
            "FluxPipeline": "Flux",
        }
        raise InputError(
            f"a {known.get(pipeline, pipeline)} checkpoint ({pipeline}), not SDXL",
            where=file,
            hint="This tool converts the SDXL family: base, refiner, inpainting and fine-tunes.",
        )
    return index


def _require_sdxl(unet: Part) -> None:
    kind = unet.config.get("addition_embed_type")
    if kind != "text_time":
        raise InputError(
            f"`addition_embed_type` is {shown(kind)}; SDXL's UNet has 'text_time'",
            where=unet.config_file,
            hint="This is the UNet of Stable Diffusion 1 or 2, or of another family, not SDXL's.",
        )


def open_part(root: Path, name: str, files: list[str], *, within: str | None = None) -> Part:
    """One network of a folder.

    Args:
        files: all that are read of `root`.
        within: the folder in it that holds the network, if not the one of its name; "" is `root`.

    Raises:
        InputError: it is another network, or its files are not what the libraries load.
    """
    place = name if within is None else within
    folder = root / place
    config = _json(folder / "config.json")
    found = config.get("_class_name") or config.get("architectures")
    found = found[0] if isinstance(found, list) and found else found
    if found and found not in SUBFOLDERS[name].classes:
        what = found if isinstance(found, str) else shown(found)
        raise InputError(
            f"is a {what}; this folder of SDXL holds a {SUBFOLDERS[name].classes[-1]}",
            where=folder / "config.json",
        )
    weights = weight_files(files, place, lambda file: read_bytes(root / file))
    _require_same_choice(folder, config, weights)
    tensors: dict[str, Tensor] = {}
    for file in weights.files:
        header = _read(root / file)
        for mark in MARKS.keys() & header.keys() if name == "unet" else ():
            raise _marked(header[mark])
        if weights.index:
            _require_as_indexed(root / file, header, weights)
        tensors |= header
    return Part(name, folder, config, normalised(name, tensors), weights.variant)


def _read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a weight file, which is what its name says: the libraries go by that."""
    found = read_weights(file)
    if (found.format == "safetensors") != (file.suffix == ".safetensors"):
        raise InputError(
            f"is a {found.format} under the name of another format, which the libraries go by",
            where=file,
            hint="Name .safetensors what is safetensors, and .bin what is a pickle.",
        )
    return found.tensors


def _require_same_choice(folder: Path, config: Mapping[str, Any], weights: WeightFiles) -> None:
    """Raises InputError if config.json makes transformers load another file than its usual one."""
    named, chosen = config.get("transformers_weights"), weights.index or weights.files[0]
    if named is not None and f"{folder.name}/{named}" != chosen:
        raise InputError(
            f"`transformers_weights` is {kind(named)}; this tool reads {Path(chosen).name}",
            where=folder / "config.json",
            hint="Save the checkpoint again with save_pretrained, which drops that key.",
        )


def _require_as_indexed(file: Path, header: Mapping[str, Tensor], weights: WeightFiles) -> None:
    """Raises InputError unless a shard holds the tensors that its index says, and no others."""
    index = Path(str(weights.index)).name
    wanted = {name for name, shard in weights.weight_map.items() if shard == file.name}
    for name in sorted(wanted ^ header.keys()):
        shard = weights.weight_map.get(name)
        where = "does not name" if shard is None else f"places in {shard}"
        raise InputError(
            f"lacks tensor `{name}`, which {index} places there"
            if name in wanted
            else f"holds tensor `{name}`, which {index} {where}",
            where=file,
            hint="Index and shards are of two saves: save or download the checkpoint again.",
        )


def _tokenizers(path: Path, parts: Mapping[str, Part]) -> dict[str, Tokenizer]:
    """The tokenizers, which fit their text encoders' embeddings."""
    rows = {
        tokenizer: embedding_rows(parts[encoder])
        for tokenizer, encoder in TOKENIZERS.items()
        if encoder in parts
    }
    return read_tokenizers(path, rows)
