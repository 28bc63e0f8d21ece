"""Which files of a repo a conversion reads: a pure function of the listing.

Hub repos hold the same weights many times over (.bin, ONNX, Flax, OpenVINO, single-file copies);
one set of safetensors per folder is enough.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from convert.errors import InputError

_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
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


def select_files(siblings: Sequence[str]) -> list[str]:
    """The files of an SDXL repo that a conversion reads, in one order for every listing.

    One set of safetensors per folder: fp16 before full precision, one file before shards.
    Raises InputError if the listing is no diffusers SDXL layout or a folder lacks safetensors.
    """
    names = set(siblings)
    if "model_index.json" not in names:
        single = sorted(n for n in names if "/" not in n and n.endswith((".safetensors", ".ckpt")))
        found = ", ".join((single or sorted(names))[:6]) or "nothing"
        raise InputError(
            f"no diffusers checkpoint here: no model_index.json, found {found}",
            hint="Single files from the Hub are not read yet: give a repo in the diffusers layout."
            if single
            else "Give a repo or folder that holds unet/, vae/, text_encoder_2/, tokenizer_2/.",
        )
    chosen = ["model_index.json", "scheduler/scheduler_config.json", "README.md"]
    chosen += [n for n in names if "/" not in n and n.startswith("LICENSE")]
    for folder, stem in _WEIGHTS.items():
        if folder != "text_encoder" or any(n.startswith("text_encoder/") for n in names):
            chosen += [f"{folder}/config.json", *_weights(names, folder, stem)]
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


def select_vae_files(siblings: Sequence[str]) -> list[str]:
    """The same for a VAE alone: in the root of its own repo, or in `vae/` of a checkpoint."""
    names, folder = set(siblings), "vae" if "vae/config.json" in siblings else ""
    config = f"{folder}/config.json".lstrip("/")
    return sorted({config, *_weights(names, folder, _WEIGHTS["vae"])} & names)


def _weights(names: set[str], folder: str, stem: str) -> list[str]:
    """The one set of safetensors to read from `folder`; both places of `fp16` occur on the Hub."""
    start = f"{folder}/{stem}" if folder else stem
    for infix in (".fp16", ""):
        if f"{start}{infix}.safetensors" in names:
            return [f"{start}{infix}.safetensors"]
        indexes = {
            f"{start}.safetensors.index{infix}.json",
            f"{start}{infix}.safetensors.index.json",
        }
        for before, after in ((infix, ""), ("", infix)):
            shard = re.escape(start + before) + r"-(\d+)-of-(\d+)" + re.escape(after)
            found = [m for n in sorted(names) if (m := re.fullmatch(shard + r"\.safetensors", n))]
            if found and len(found) == int(found[0][2]) and indexes & names:
                return [*sorted(indexes & names)[:1], *(m[0] for m in found)]
    held = sorted(n for n in names if n.startswith(f"{folder}/" if folder else stem))
    listed = ", ".join(n.rpartition("/")[2] for n in held[:6])
    raise InputError(
        f"{folder or 'the repo'}/ has no complete safetensors weights, found {listed or 'nothing'}",
        hint="Save it with diffusers' save_pretrained, which writes safetensors, or look for a "
        "revision or repo that holds them."
        if held
        else "SDXL has unet/, vae/, text_encoder_2/ (and text_encoder/, but for the refiner).",
    )
