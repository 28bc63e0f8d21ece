"""Another VAE in a checkpoint, in place of its own: from whatever people have them in.

VAEs come alone, in files of LDM's or diffusers' names and in folders with a config.json, or in
whole checkpoints. Those of SDXL and of Stable Diffusion 1 have the same tensors in the same shapes,
so a file alone does not tell whose it is: digests, configs and metadata are asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.derived import dtypes_of
from convert.checkpoint.latents import SCALING_FACTOR
from convert.checkpoint.layout import recognise
from convert.checkpoint.origin import AppliedVae
from convert.checkpoint.small_files import layout_name
from convert.checkpoint.weights import read_weights
from convert.components import SUBFOLDERS
from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import FileMissing, read_object, readable
from convert.known.documents import known_config
from convert.known.fitted import fitted_vae
from convert.known.vaes import KnownVae, known_vae
from convert.opening.folder import open_part, read_index
from convert.opening.renaming import under_library_names
from convert.opening.templates import same_widths
from convert.opening.whose_vae import evidence_of, require_class, require_sdxl
from convert.source.select import is_single, select_vae, vae_folder
from convert.source.snapshot import OTHER_VAE, file_names, require_target, select_local

CONFIG = "vae/config.json"

NONE: Mapping[Path, str] = MappingProxyType({})
_READ = (".json", ".safetensors", ".bin")
# What a config says of its own VAE's latents and values, rather than of its structure.
_OWN = ("shift_factor", "latents_mean", "latents_std", "force_upcast")


@dataclass(frozen=True)
class OpenedVae:
    """A VAE that was found somewhere.

    Attributes:
        files: all that were read or will be, by their names among a checkpoint's files.
        document: its config.json, where no file holds one.
    """

    part: Part
    files: Mapping[str, Path]
    applied: AppliedVae
    document: str | None = None


def with_vae(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str | None = None,
    base: Checkpoint | None = None,
    digests: Mapping[Path, str] = NONE,
) -> Checkpoint:
    """The checkpoint with the VAE at `path` in place of its own, whose files it does not read.

    Args:
        checkpoint: one that may have been opened without a VAE.
        path, name, digests: as `open_vae` takes them.
        base: what the checkpoint was completed from.

    Raises:
        InputError: as `open_vae`.
    """
    vae = open_vae(path, name=name, digests=digests, like=_own_config(checkpoint, base))
    others = {f for n, part in checkpoint.parts.items() if n != "vae" for f in part.weight_files}
    own = checkpoint.parts["vae"].weight_files if "vae" in checkpoint.parts else frozenset()
    files = {
        name: file
        for name, file in checkpoint.files.items()
        if file in others or (file not in own and not layout_name(name).startswith("vae/"))
    }
    documents = {n: text for n, text in checkpoint.documents.items() if n != CONFIG}
    if vae.document is not None:
        documents[CONFIG] = vae.document
    parts = {**checkpoint.parts, "vae": vae.part}
    origin = checkpoint.origin
    if origin is not None:
        dtypes = {n: found for n, found in origin.dtypes.items() if n != "vae"}
        places = {**origin.parts, "vae": f"VAE {vae.applied.name}"}
        origin = replace(origin, parts=places, dtypes=dtypes)
    return replace(
        checkpoint,
        parts={n: parts[n] for n in SUBFOLDERS if n in parts},
        files={**files, **vae.files},
        documents=documents,
        origin=origin,
        other_vae=vae.applied,
    )


def open_vae(
    path: Path,
    *,
    name: str | None = None,
    like: Mapping[str, Any] | None = None,
    digests: Mapping[Path, str] = NONE,
) -> OpenedVae:
    """The VAE of a file or folder: alone, or in a whole checkpoint.

    Args:
        path: a single file, or a folder: with config.json and weights, with a folder `vae`, or
            with a single file alone.
        name: what it is called; the file's or folder's name if None.
        like: the config.json of a VAE that says what a file's shapes do not, where SDXL's own has
            other widths.
        digests: SHA-256 (hex) of files whose digest is known already.

    Raises:
        InputError: there is no VAE, or it is not one for SDXL's latents.
    """
    require_target(path)
    if not path.exists():
        raise InputError("no such folder or file", where=path)
    if path.is_dir():
        folder = vae_folder(file_names(path))
        if folder is not None:
            called = name or readable(name_as_given(path))
            return _of_folder(path, folder, called, digests)
        (single,) = filter(is_single, select_local(path, select_vae))
        path = path / single
    return _of_file(path, name or readable(path.name), like, digests)


def holds_vae_alone(path: Path) -> bool:
    """Whether a path is a VAE and nothing else: a file, or a folder with a VAE's config.json."""
    if path.is_dir():
        config = path / "config.json"
        is_alone = vae_folder(file_names(path)) == "" and config.is_file()
        return is_alone and "Autoencoder" in str(read_object(config).get("_class_name", ""))
    try:
        file = read_weights(path)
        return recognise(file.tensors, path).parts.keys() == {"vae"}
    except InputError:
        return False


def _of_folder(root: Path, folder: str, name: str, digests: Mapping[Path, str]) -> OpenedVae:
    """The VAE in a folder of diffusers' layout; `folder` is vae, or "" for the top."""
    if folder and "model_index.json" in file_names(root):
        read_index(root)  # or an error that says whose checkpoint it is
    place = root / folder
    try:
        config = read_object(place / "config.json")
    except FileMissing as error:
        problem = "holds no VAE: vae/config.json is missing" if folder else error.problem
        raise InputError(problem, where=root) from None
    require_class(config, place / "config.json")
    chosen = select_local(root, select_vae)
    names = [n for n in chosen if n.startswith(folder) and n.endswith(_READ)]
    names = [n for n in names if n != "model_index.json"]
    part = open_part(root, "vae", names, within=folder)
    known = known_vae(part.weight_files, digests)
    evidence = require_sdxl(part, known, read=True)
    what = "a VAE's folder" if not folder else "the VAE of a folder"
    applied = _applied(part, name, f"{what} in diffusers' layout", known, evidence, root)
    files = {OTHER_VAE + n: root / n for n in names}
    return OpenedVae(part, files, applied)


def _of_file(
    path: Path, name: str, like: Mapping[str, Any] | None, digests: Mapping[Path, str]
) -> OpenedVae:
    """The VAE in a single file; InputError if there is none."""
    file = read_weights(path)
    layout = recognise(file.tensors, path)
    single = layout.parts.get("vae")
    if single is None:
        raise InputError(
            f"holds {', '.join(layout.parts)}, and no VAE",
            where=path,
            hint="Give a VAE's own file, or a checkpoint that has one in it.",
        )
    tensors = under_library_names(single, path)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    template = known_config("vae", "base")
    if like is not None and not same_widths("vae", shapes, template):
        scale = {"scaling_factor": SCALING_FACTOR, "_class_name": "AutoencoderKL"}
        template = {k: v for k, v in like.items() if k not in _OWN} | scale
    config = fitted_vae(shapes, template, path)
    part = Part("vae", path, config, tensors, None, single)
    known = known_vae(part.weight_files, digests)
    evidence = require_sdxl(part, known, read=False) or evidence_of(layout, file)
    is_alone = layout.parts.keys() == {"vae"}
    what = "a VAE alone" if is_alone else "the VAE of a whole checkpoint"
    said = f"{what}, in {single.spelling} names ({file.format})"
    applied = _applied(part, name, said, known, evidence, path.parent)
    applied = replace(applied, ignored=layout.ignored if is_alone else {})
    document = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return OpenedVae(part, {OTHER_VAE + path.name: path}, applied, document)


def _own_config(checkpoint: Checkpoint, base: Checkpoint | None) -> Mapping[str, Any] | None:
    """The config of the VAE that another takes the place of."""
    for held in (checkpoint, base):
        if held is not None and "vae" in held.parts:
            return held.parts["vae"].config
    try:
        return read_object(checkpoint.path / CONFIG)
    except InputError:
        return None


def _applied(
    part: Part, name: str, layout: str, known: KnownVae | None, evidence: str | None, root: Path
) -> AppliedVae:
    weights = sorted(part.weight_files)
    return AppliedVae(
        name=name,
        files=tuple(OTHER_VAE + file.relative_to(root).as_posix() for file in weights),
        layout=layout,
        dtypes=dtypes_of(part.tensors.values()),
        known=known.name if known else None,
        license=known.license if known else None,
        is_sdxl=evidence,
    )
