"""An SDXL checkpoint in diffusers' layout: configs, tokenizers and tensors by reference.

Names are normalised here, once, so that the networks meet one spelling however the checkpoint was
saved: CLIP with and without the `text_model.` prefix and with `position_ids` buffers, VAE attention
under its old names (`query`, `key`, `value`, `proj_attn`) or as 1×1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from convert.checkpoint.config_reader import Config
from convert.checkpoint.configs import (
    CONFIGS,
    CLIPConfig,
    PartConfig,
    UNetConfig,
    VAEConfig,
)
from convert.checkpoint.tensors import Tensor, read_header
from convert.components import COMPONENTS, SUBFOLDERS, FeatureSpec, belongs
from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import FileMissing, kind, read_bytes, read_object, readable, shown
from convert.source.select import WeightFiles, select_files, weight_files
from convert.source.snapshot import require_target, select_local
from convert.tokenizer.clip import TOKENIZERS, Tokenizer, read_tokenizers
from convert.values import Resolution

Shape = tuple[int, ...]

SCHEDULER = Path("scheduler", "scheduler_config.json")


@dataclass(frozen=True)
class Part:
    """One network folder of the checkpoint: its config and its tensors by reference."""

    name: str  # the folder: unet, vae, text_encoder, text_encoder_2
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    variant: str | None = None  # of its weight files, as `from_pretrained` calls it: fp16 or None

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def weight_files(self) -> frozenset[Path]:
        """The files that its tensors are read from."""
        return frozenset(file for tensor in self.tensors.values() for file in tensor.files)

    @property
    def config_file(self) -> Path:
        """Where the config was read."""
        return self.path / "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; nothing but headers and configs has been read.

    The typed configs are parsed once, when they are first asked for: a config that our networks
    cannot express is no hindrance to whoever does not build them. Each raises InputError for one.
    """

    path: Path
    name: str
    files: Mapping[str, Path]  # all that were read or will be, by their path in the folder
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Mapping[str, Any]
    model_index: Mapping[str, Any]
    _configs: dict[str, PartConfig] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def components(self) -> tuple[str, ...]:
        """The components that can be converted, in the order of `COMPONENTS`."""
        return tuple(name for name, spec in COMPONENTS.items() if spec.part in self.parts)

    def part(self, component: str) -> Part:
        """The part that holds `component`; raises InputError if the checkpoint lacks it."""
        name = COMPONENTS[component].part
        if name not in self.parts:
            raise InputError(
                f"the checkpoint has no `{name}` folder, which {component} is made from",
                where=self.path,
                hint=f"It has: {', '.join(self.parts)}.",
            )
        return self.parts[name]

    def component_tensors(self, component: str) -> dict[str, Tensor]:
        """The tensors of one component; raises InputError for a tensor that belongs to none."""
        part = self.part(component)
        owners = [c for c, spec in COMPONENTS.items() if spec.part == part.name]
        for name, tensor in part.tensors.items():
            if not any(belongs(c, name) for c in owners):
                raise InputError(
                    f"tensor `{name}` has no place in the network that the config describes",
                    where=tensor.path,
                    hint="The weights do not belong to this config.json.",
                )
        return {name: t for name, t in part.tensors.items() if belongs(component, name)}

    def tensor_keys(self, component: str, digests: Mapping[str, str]) -> dict[str, Any]:
        """What determines the component's tensors, as JSON by their names; see `Tensor.key`.

        Args:
            digests: SHA-256 (hex) by the names in `files`, of all that the tensors are read from.
        """
        known = {self.files[name]: digest for name, digest in digests.items()}
        return {name: t.key(known) for name, t in self.component_tensors(component).items()}

    @cached_property
    def unet(self) -> UNetConfig:
        """The UNet's config; it must fit the width of text encoder 2's pooled output."""
        part, text = self.part("unet"), self.part("text_encoder_2")
        width = Config(text.config, text.config_file).integer("projection_dim", 512)
        return UNetConfig.parse(part.config, part.config_file, width)

    @cached_property
    def vae(self) -> VAEConfig:
        """The VAE's config, of decoder and encoder."""
        config = self._own_config("vae_decoder")
        assert isinstance(config, VAEConfig)
        return config

    @cached_property
    def text_encoders(self) -> Mapping[str, CLIPConfig]:
        """The text encoders' configs, by component; a refiner has only the second."""
        return {
            name: CLIPConfig.parse(part.config, part.config_file, projected=spec.projected)
            for name, spec in COMPONENTS.items()
            if spec.kind == "text_encoder" and (part := self.parts.get(spec.part))
        }

    def config(self, component: str) -> PartConfig:
        """The typed config of a component's part."""
        spec = COMPONENTS[component]
        if spec.kind == "text_encoder":
            return self.text_encoders[component]
        return self.unet if spec.part == "unet" else self._own_config(component)

    def _own_config(self, component: str) -> PartConfig:
        part = self.part(component)
        if part.name not in self._configs:
            config = CONFIGS[part.name].parse(part.config, part.config_file)
            self._configs[part.name] = config
        return self._configs[part.name]

    def shapes(
        self, component: str, resolution: Resolution | None
    ) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """The component's inputs' and outputs' shapes, as the table of components has them.

        Text encoders need no resolution. Where it is None, sizes that depend on it are -1.
        """
        spec, sizes = COMPONENTS[component], dict(self.config(component).sizes)
        if spec.has_resolution:
            sizes |= dict.fromkeys("HWhw", -1)
            if resolution is not None:
                factor = self.vae.factor
                sizes |= {"H": resolution.height, "W": resolution.width}
                sizes |= {"h": sizes["H"] // factor, "w": sizes["W"] // factor}

        def resolved(features: Mapping[str, FeatureSpec]) -> dict[str, Shape]:
            return {
                name: tuple(sizes[n] if isinstance(n, str) else n for n in feature.shape)
                for name, feature in features.items()
            }

        return resolved(spec.inputs), resolved(spec.outputs)


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


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a local SDXL checkpoint in diffusers' layout.

    Args:
        path: the folder with `model_index.json`.
        name: what artifacts are called after; the folder's name if None.

    Raises:
        InputError: not a folder, not SDXL, a missing part, a damaged or incomplete weight file.
    """
    require_target(path)
    if not path.exists():
        raise InputError("no such folder", where=path)
    if not path.is_dir():
        raise InputError(
            "is a file; a checkpoint is a folder in diffusers' layout",
            where=path,
            hint="Single .safetensors and .ckpt files follow in a later version.",
        )
    model_index = _model_index(path)
    files = select_local(path, select_files)
    folders = [n for n in SUBFOLDERS if (path / n).is_dir()]
    missing = [n for n, spec in SUBFOLDERS.items() if not spec.is_optional and n not in folders]
    if missing:
        raise InputError(
            f"lacks the folder {', '.join(f'`{m}`' for m in missing)}",
            where=path,
            hint="An SDXL checkpoint has unet, vae, text_encoder_2 and (but for a refiner) "
            "text_encoder. Download it again.",
        )
    parts = {n: _open_part(path, n, files) for n in folders}
    _require_sdxl(parts["unet"])
    return Checkpoint(
        path=path,
        files={file: path / file for file in files},
        parts=parts,
        scheduler=_json(path / SCHEDULER, default={}),
        model_index=model_index,
        tokenizers=_tokenizers(path, parts),
        name=name or readable(name_as_given(path)),
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


def _model_index(path: Path) -> dict[str, Any]:
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


def _open_part(root: Path, name: str, files: list[str]) -> Part:
    folder = root / name
    config = _json(folder / "config.json")
    found = config.get("_class_name") or config.get("architectures")
    found = found[0] if isinstance(found, list) and found else found
    if found and found not in SUBFOLDERS[name].classes:
        what = found if isinstance(found, str) else shown(found)
        raise InputError(
            f"is a {what}; this folder of SDXL holds a {SUBFOLDERS[name].classes[-1]}",
            where=folder / "config.json",
        )
    weights = weight_files(files, name, lambda file: read_bytes(root / file))
    _require_same_choice(folder, config, weights)
    tensors: dict[str, Tensor] = {}
    for file in weights.files:
        header = read_header(root / file)
        for mark in MARKS.keys() & header.keys() if name == "unet" else ():
            raise _marked(header[mark])
        if weights.index:
            _require_as_indexed(root / file, header, weights)
        tensors |= header
    return Part(name, folder, config, _normalise(name, tensors), weights.variant)


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


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _normalise(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _tokenizers(path: Path, parts: Mapping[str, Part]) -> dict[str, Tokenizer]:
    """The tokenizers, which fit their text encoders' embeddings."""
    rows = {
        tokenizer: embedding_rows(parts[encoder])
        for tokenizer, encoder in TOKENIZERS.items()
        if encoder in parts
    }
    return read_tokenizers(path, rows)


def embedding_rows(encoder: Part) -> int:
    """How many tokens a text encoder has embeddings of; what its config says without weights."""
    table = encoder.tensors.get("embeddings.token_embedding.weight")
    if table is not None and len(table.shape) == 2:
        return table.shape[0]
    return Config(encoder.config, encoder.config_file).integer("vocab_size", 49408)
