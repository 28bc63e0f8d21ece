"""The recipe's section `source`: where the checkpoint comes from, and what is put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from convert.recipe.errors import refusal
from convert.recipe.fields import BaseText, DownloadLink, HubRepo, Sha256, Text
from convert.recipe.section import Section

ORIGINS = ("repo", "path", "url")
Prediction = Literal["auto", "epsilon", "v"]
PREDICTIONS = get_args(Prediction)


class FileSource(Section):
    """A file of weights beside the checkpoint: exactly one of path, repo and url."""

    path: Text | None = Field(
        default=None,
        description="The file; a relative path starts at the recipe's folder.",
        examples=["detail.safetensors"],
    )
    repo: HubRepo | None = Field(
        default=None,
        description="A Hub repository that holds it.",
        examples=["latent-consistency/lcm-lora-sdxl"],
    )
    url: DownloadLink | None = Field(
        default=None,
        description="The file's address. A token for its server is given as SDXL_COREML_TOKEN.",
        examples=["https://civitai.com/api/download/models/135867"],
    )
    file: Text | None = Field(
        default=None,
        description="The file that is meant, of a Hub repository that holds several.",
        examples=["pytorch_lora_weights.safetensors"],
    )
    revision: Text | None = Field(
        default=None, description="A commit of the Hub repository.", examples=["main"]
    )
    sha256: Sha256 | None = Field(
        default=None,
        description="What the file's SHA-256 must be.",
        examples=["31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"],
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = _one_of(self, ("path", "repo", "url"))
        for key in ("file", "revision"):
            if given != "repo" and getattr(self, key) is not None:
                raise refusal(f"belongs to repo; a {given} is the file itself", at=f".{key}")
        return self


class LoraSource(FileSource):
    """A LoRA or one of its kin: where it is, and how strongly it is merged."""

    scale: float = Field(
        default=1.0, ge=-100, le=100, description="Strength in the UNet.", examples=[0.8]
    )
    text_scale: float | None = Field(
        default=None,
        ge=-100,
        le=100,
        description="Strength in the text encoders; by default as in the UNet.",
        examples=[0.6],
    )


class EmbeddingSource(FileSource):
    """An embedding (textual inversion): where it is, and the word that it is written by."""

    token: Text | None = Field(
        default=None,
        description="The word for it in prompts, of the letters a to z; made of the file's name "
        "without it. One of several vectors has as many words, which `plan` says.",
        examples=["mystyle"],
    )


class _Origin(Section):
    """Where the checkpoint itself comes from."""

    repo: HubRepo | None = Field(
        default=None, description="A Hub repository.", examples=["cagliostrolab/animagine-xl-3.1"]
    )
    path: Text | None = Field(
        default=None,
        description="A folder in diffusers' layout, or a .safetensors or .ckpt file; a relative "
        "path starts at the recipe's folder.",
        examples=["checkpoints/my-model"],
    )
    url: DownloadLink | None = Field(
        default=None,
        description="The address of a .safetensors or .ckpt file. A token for its server is given "
        "as SDXL_COREML_TOKEN, never here.",
        examples=["https://civitai.com/api/download/models/128713"],
    )
    revision: Text | None = Field(
        default=None,
        description="A commit of the Hub repository; a branch or tag is resolved and recorded.",
        examples=["main"],
    )
    file: Text | None = Field(
        default=None,
        description="The one file that is meant, of a Hub repository that holds single files.",
        examples=["model-v2.safetensors"],
    )
    sha256: Sha256 | None = Field(
        default=None,
        description="What the SHA-256 of the single file must be.",
        examples=["31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"],
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = _one_of(self, ORIGINS)
        for key in ("revision", "file"):
            if getattr(self, key) is not None and self.repo is None:
                what = "revisions" if key == "revision" else "files to choose from"
                raise refusal(f"belongs to repo; a {given} has no {what}", at=f".{key}")
        if self.sha256 is not None and self.repo is not None and self.file is None:
            raise refusal("is of a single file, which `file` names in a repo", at=".sha256")
        return self


class Ingredients(Section):
    """What a checkpoint is made of beside its source."""

    LATER: ClassVar[Mapping[str, str]] = {"refiner": "convert it by a recipe of its own"}

    base: BaseText | None = Field(
        default=None,
        description="Where parts come from that a single file lacks (text encoders, VAE, configs, "
        "tokenizers): a Hub repository, an address, a folder or file; a relative path starts at "
        "the recipe's folder.",
        examples=["stabilityai/stable-diffusion-xl-base-1.0"],
    )
    vae: BaseText | None = Field(
        default=None,
        description="A VAE in place of the checkpoint's own: a Hub repository, an address, a "
        "folder or file, of a VAE alone or of a checkpoint that has one; a relative path starts at "
        "the recipe's folder.",
        examples=["madebyollin/sdxl-vae-fp16-fix"],
    )
    loras: tuple[LoraSource, ...] = Field(
        default=(),
        strict=False,  # a list of TOML
        description="LoRAs and kin to merge, in this order.",
        examples=[[{"path": "detail.safetensors", "scale": 0.8, "text_scale": 0.6}]],
    )
    embeddings: tuple[EmbeddingSource, ...] = Field(
        default=(),
        strict=False,  # a list of TOML
        description="Embeddings (textual inversions) to add, each written as words of its own.",
        examples=[[{"path": "style.safetensors", "token": "mystyle"}]],
    )
    ema: bool = Field(
        default=False,
        description="Take the EMA weights of a single file's UNet in place of the plain ones.",
        examples=[True],
    )
    prediction: Prediction = Field(
        default="auto",
        description="What the UNet predicts: epsilon or v; auto is what the checkpoint says.",
        examples=["v"],
    )

    def updated(self, given: Ingredients) -> Self:
        """These, but for what is said in `given`."""
        return self.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})


class Source(Ingredients, _Origin):  # in this order, the origin's keys come first
    """Where the checkpoint comes from: exactly one of repo, path and url."""


def _one_of(section: Any, keys: tuple[str, ...]) -> str:
    """The only one of these keys that is given; raises a refusal otherwise."""
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        found = f"not {' and '.join(given)}" if given else "none is given"
        raise refusal(f"needs exactly one of {', '.join(keys)}; {found}")
    return given[0]
