"""An SDXL checkpoint: configs, tokenizers and tensors by reference, under diffusers' names."""

from __future__ import annotations

import hashlib
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
from convert.checkpoint.layout import FilePart
from convert.checkpoint.origin import AppliedEmbedding, AppliedLora, AppliedVae, Origin
from convert.checkpoint.tensors import Tensor
from convert.components import COMPONENTS, FeatureSpec, belongs
from convert.errors import InputError
from convert.tokenizer.clip import Tokenizer
from convert.values import Resolution

Shape = tuple[int, ...]

SCHEDULER = Path("scheduler", "scheduler_config.json")


@dataclass(frozen=True)
class Part:
    """One network of the checkpoint: its config and its tensors by reference."""

    name: str  # its folder in diffusers' layout: unet, vae, text_encoder, text_encoder_2
    path: Path  # its folder, or the single file that holds it
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    variant: str | None = None  # of its weight files, as `from_pretrained` calls it: fp16 or None
    single: FilePart | None = None  # what it is in a single file; None of a folder

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def weight_files(self) -> frozenset[Path]:
        """The files that its tensors are read from."""
        return frozenset(file for tensor in self.tensors.values() for file in tensor.files)

    @property
    def is_pickled(self) -> bool:
        """Whether the libraries read its weights from pickles (`.bin`)."""
        return any(file.suffix == ".bin" for file in self.weight_files)

    @property
    def config_file(self) -> Path:
        """Where the config was read; of a single file, whose shapes have told it, that file."""
        return self.path if self.single else self.path / "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; nothing but headers and configs has been read.

    The typed configs are parsed once, when they are first asked for: a config that our networks
    cannot express is no hindrance to whoever does not build them. Each raises InputError for one.
    """

    path: Path  # the folder, or the single file
    name: str
    files: Mapping[str, Path]  # all that were read or will be, by their path in the folder
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Mapping[str, Any]
    model_index: Mapping[str, Any]
    documents: Mapping[str, str] = field(default_factory=dict)  # that no file holds, by their path
    origin: Origin | None = None  # what was put together; None for one folder in diffusers' layout
    loras: tuple[AppliedLora, ...] = ()  # that its tensors have in them, in their order
    other_vae: AppliedVae | None = None  # that took the place of its own
    embeddings: tuple[AppliedEmbedding, ...] = ()  # that its text encoders have rows of
    bare: Checkpoint | None = None  # the same without these embeddings, if it has any
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
            what = f"`{name}`" if self.origin else f"`{name}` folder"
            raise InputError(
                f"the checkpoint has no {what}, which {component} is made from",
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
        known = {path: digests[name] for name, path in self.files.items() if name in digests}
        return {name: t.key(known) for name, t in self.component_tensors(component).items()}

    def document_digests(self) -> dict[str, str]:
        """SHA-256 (hex) of the documents that no file holds, by their path."""
        return {n: hashlib.sha256(text.encode()).hexdigest() for n, text in self.documents.items()}

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


def embedding_rows(encoder: Part) -> int:
    """How many tokens a text encoder has embeddings of; what its config says without weights."""
    table = encoder.tensors.get("embeddings.token_embedding.weight")
    if table is not None and len(table.shape) == 2:
        return table.shape[0]
    return Config(encoder.config, encoder.config_file).integer("vocab_size", 49408)
