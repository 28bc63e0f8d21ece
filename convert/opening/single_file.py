"""A checkpoint from a single file: its networks under diffusers' names, its configs from shapes.

What the file lacks comes from `base`, a checkpoint that was opened before, part by part; configs
and tokenizers are known (`convert.known`) where they are SDXL's own. What was taken from where is
recorded in the checkpoint's `origin`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint.checkpoint import Checkpoint, Part, embedding_rows
from convert.checkpoint.derived import dtypes_of
from convert.checkpoint.layout import FileLayout, recognise
from convert.checkpoint.origin import Origin
from convert.checkpoint.small_files import layout_name
from convert.checkpoint.tensors import Tensor
from convert.checkpoint.weights import WeightsFile, read_weights
from convert.components import SUBFOLDERS
from convert.errors import InputError
from convert.files.disk import name_as_given
from convert.files.json_files import readable
from convert.known.documents import SDXLKind, known_index, known_scheduler
from convert.known.fitted import fitted_text_encoder, fitted_unet, fitted_vae
from convert.known.vocabulary import ROWS, known_tokenizer, tokenizer_documents
from convert.opening.kinds import kind_of, kind_of_file, prediction_of, settings_beside
from convert.opening.renaming import under_library_names
from convert.opening.templates import template_of
from convert.source.select import is_single
from convert.source.snapshot import BASE
from convert.tokenizer.clip import TOKENIZERS, Tokenizer


def open_single_file(
    path: Path,
    *,
    name: str | None = None,
    base: Checkpoint | None = None,
    without: Collection[str] = (),
    ema: bool = False,
) -> Checkpoint:
    """Open the checkpoint in a single file; as `convert.opening.door.open_checkpoint`."""
    file = read_weights(path)
    return _Assembly(file, recognise(file.tensors, path, ema=ema), base, without).checkpoint(name)


@dataclass(frozen=True)
class _Assembly:
    """A file's layout and what completes it."""

    file: WeightsFile
    layout: FileLayout
    base: Checkpoint | None
    without: Collection[str] = ()

    @property
    def path(self) -> Path:
        """The file's."""
        return self.file.path

    def checkpoint(self, name: str | None) -> Checkpoint:
        held = {n: part for n, part in self.layout.parts.items() if n not in self.without}
        found = {n: under_library_names(part, self.path) for n, part in held.items()}
        kind = kind_of_file(self.layout, self.path, self.base)
        absent = {*self.without, *(["text_encoder"] if kind == "refiner" else [])}
        wanted = [n for n in SUBFOLDERS if n not in absent]
        self.require_wanted(wanted, kind)
        given = {n: self.base.parts[n] for n in wanted if n not in found and self.base}
        parts = self.parts(found, kind, given)
        parts = {n: parts[n] for n in wanted}
        self.require_fit(parts)
        tokenizers, documents, from_base = self.tokenizers(parts)
        scheduler, prediction = self.scheduler()
        index = self.index(kind)
        documents |= {f"{n}/config.json": _json(parts[n].config) for n in found}
        documents |= {
            "scheduler/scheduler_config.json": _json(scheduler),
            "model_index.json": _json(index),
        }
        files, theirs = self.base_files({*given, *from_base}, given)
        return Checkpoint(
            path=self.path,
            name=name or _own_name(self.path),
            files={**self.own_files(), **files},
            parts=parts,
            tokenizers=tokenizers,
            scheduler=scheduler,
            model_index=index,
            documents={**theirs, **documents},
            origin=Origin(
                kind=kind,
                layout=self.said(),
                parts=self.places(wanted, given, list(tokenizers), from_base),
                dtypes={
                    n: dtypes_of(self.layout.parts[n].tensors.values())
                    for n in wanted
                    if n in found
                },
                ignored=self.ignored(),
                prediction=prediction,
                base=self.base.name if self.base else None,
            ),
        )

    # ---- what it is ----

    def said(self) -> str:
        """The file's layout in words."""
        spellings = dict.fromkeys(part.spelling for part in self.layout.parts.values())
        what = "a whole checkpoint"
        if "unet" not in self.layout.parts or len(self.layout.parts) < 3:
            what = " and ".join(self.layout.parts) + " alone"
        return f"a single file ({self.file.format}), {what}, in names of {_listed(spellings)}"

    def ignored(self) -> dict[str, tuple[str, ...]]:
        """What the file holds and nothing is made of, by why."""
        found = dict(self.layout.ignored)
        if self.file.others:
            found["no tensors, left by the trainer"] = self.file.others
        for name, part in self.layout.parts.items():
            if name in self.without:
                found[f"another {name} takes its place"] = tuple(map(part.full_name, part.tensors))
        return found

    def places(
        self,
        wanted: list[str],
        given: Mapping[str, Part],
        tokenizers: list[str],
        from_base: set[str],
    ) -> dict[str, str]:
        """Where each part comes from."""
        base = f"base {self.base.name}" if self.base else ""
        found = {n: base if n in given else self.path.name for n in wanted}
        found |= {n: base if n in from_base else "known: CLIP's vocabulary" for n in tokenizers}
        return {**found, "scheduler": base or "known: SDXL's"}

    # ---- what completes it ----

    def require_wanted(self, wanted: list[str], kind: SDXLKind) -> None:
        """Raise InputError for parts that are nowhere, or that such a model has not."""
        held = self.layout.parts
        for name in held:
            if name not in wanted and name not in self.without:
                raise InputError(
                    f"holds {name}, which a refiner does not have",
                    where=self.path,
                    hint="UNet and text encoders belong to different models.",
                )
        missing = [name for name in wanted if name not in held]
        if self.base is not None:
            missing = [name for name in missing if name not in self.base.parts]
        if not missing:
            return
        if self.base is None:
            raise InputError(
                f"holds {', '.join(held)} alone, and lacks {', '.join(missing)}",
                where=self.path,
                hint="Say with --base, or `base` in the recipe's [source], which checkpoint they "
                "come from: stabilityai/stable-diffusion-xl-base-1.0, for example, or the one "
                "that it was made from.",
            )
        raise InputError(
            f"lacks {', '.join(missing)}, and so does its base {self.base.name}",
            where=self.path,
            hint=f"The file is of {kind}; give a base of the same kind.",
        )

    def parts(
        self,
        found: Mapping[str, dict[str, Tensor]],
        kind: SDXLKind,
        given: Mapping[str, Part],
    ) -> dict[str, Part]:
        """The networks: the base's as they are, the file's with configs that fit their shapes."""
        parts = dict(given)
        for name in sorted(found, key=list(SUBFOLDERS).index, reverse=True):  # the UNet last
            shapes = {key: tensor.shape for key, tensor in found[name].items()}
            template = template_of(name, kind, shapes, self.base)
            if name == "unet":
                config = fitted_unet(
                    shapes,
                    template,
                    self.path,
                    projection=_projection(parts["text_encoder_2"]),
                    time_ids=5 if kind == "refiner" else 6,
                )
            elif name == "vae":
                config = fitted_vae(shapes, template, self.path)
            else:
                config = fitted_text_encoder(shapes, template, self.path)
            single = self.layout.parts[name]
            parts[name] = Part(name, self.path, config, found[name], None, single)
        return parts

    def require_fit(self, parts: Mapping[str, Part]) -> None:
        """Raise InputError unless the text encoders give what the UNet's attentions take."""
        config = parts["unet"].config
        context = config.get("cross_attention_dim")
        widths = [
            part.config.get("hidden_size", 512)
            for name, part in parts.items()
            if name.startswith("text_encoder")
        ]
        if isinstance(context, int) and context != sum(widths):
            raise InputError(
                f"the UNet takes text of {context} channels; the text encoders give "
                f"{' and '.join(map(str, widths))}",
                where=self.path,
                hint="UNet and text encoders belong to different models: give another base.",
            )

    def tokenizers(
        self, parts: Mapping[str, Part]
    ) -> tuple[dict[str, Tokenizer], dict[str, str], set[str]]:
        """The tokenizers, the documents of those that are known, and which are the base's."""
        found: dict[str, Tokenizer] = {}
        wanted = {n: parts[encoder] for n, encoder in TOKENIZERS.items() if encoder in parts}
        theirs = dict(self.base.tokenizers) if self.base else {}
        counts = {n: embedding_rows(part) for n, part in wanted.items()}
        if all(n in theirs and self.base_rows(n) == count for n, count in counts.items()):
            return {n: theirs[n] for n in wanted}, {}, set(wanted)
        for name, count in counts.items():
            if count != ROWS:
                raise InputError(
                    f"its {TOKENIZERS[name]} has embeddings of {count} tokens, CLIP's vocabulary "
                    f"{ROWS}",
                    where=self.path,
                    hint="Say with --base, or `base` in the recipe's [source], which checkpoint "
                    "has its tokenizers.",
                )
            found[name] = known_tokenizer(name)
        documents = {k: text for n in found for k, text in tokenizer_documents(n).items()}
        return found, documents, set()

    def base_rows(self, tokenizer: str) -> int | None:
        """How many tokens the base's text encoder of a tokenizer has embeddings of."""
        part = self.base.parts.get(TOKENIZERS[tokenizer]) if self.base else None
        return embedding_rows(part) if part else None

    def scheduler(self) -> tuple[dict[str, Any], tuple[str, str]]:
        """scheduler_config.json; what the UNet predicts, and what says so."""
        prediction = prediction_of(self.layout, self.file.metadata, self.path)
        is_v, zero = prediction[0] == "v_prediction", "ztsnr" in self.layout.marks
        if self.base is None:
            return known_scheduler(v_prediction=is_v, zero_snr=zero), prediction
        found = dict(self.base.scheduler)
        found |= {"prediction_type": "v_prediction"} if is_v else {}
        found |= {"rescale_betas_zero_snr": True} if zero else {}
        if not is_v:
            prediction = (str(found.get("prediction_type", "epsilon")), f"base {self.base.name}")
        return found, prediction

    def index(self, kind: SDXLKind) -> dict[str, Any]:
        """model_index.json."""
        if self.base is not None and kind_of(self.base) == kind:
            return dict(self.base.model_index)
        return known_index(kind)

    def own_files(self) -> dict[str, Path]:
        """The file, and the settings beside it that have been read."""
        beside = settings_beside(self.path)
        return {file.name: file for file in (self.path, beside) if file is not None}

    def base_files(
        self, folders: set[str], given: Mapping[str, Part]
    ) -> tuple[dict[str, Path], dict[str, str]]:
        """The base's files and documents that are used, by their names here."""
        if self.base is None:
            return {}, {}
        weights = {file for part in given.values() for file in part.weight_files}
        files = {
            BASE + name: path
            for name, path in self.base.files.items()
            if layout_name(name).partition("/")[0] in folders or path in weights
        }
        documents = {
            name: text
            for name, text in self.base.documents.items()
            if name.partition("/")[0] in folders
        }
        return files, documents


def _projection(part: Part) -> int:
    """The width of text encoder 2's pooled output."""
    found = part.tensors.get("text_projection.weight")
    if found is None or not found.shape:
        raise InputError(
            "its text_encoder_2 lacks tensor `text_projection.weight`", where=part.path
        )
    return found.shape[0]


def _own_name(path: Path) -> str:
    """The file's name without what says its format."""
    name = readable(name_as_given(path))
    return name.rpartition(".")[0] if is_single(name) else name


def _listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
