"""What a downloader has to know of the files before choosing one, computed from their manifests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from convert.recipe.recipe import Recipe
from convert.recipe.schedulers import title
from release.card.markdown import code, link, prose

# Apple's Swift package e12202c, Scheduler.swift: PNDM, DPM-Solver++ and a flow scheduler.
SWIFT_SCHEDULERS = ("pndm", "dpmpp_2m", "dpmpp_2m_karras")
CHUNKS = "https://github.com/apple/ml-stable-diffusion#-converting-models-to-core-ml"
ArchiveEntry = Mapping[str, Any]


def facts(manifest: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A line of Markdown each; what is true of some files only says of which."""
    archives = manifest["archives"]
    attention = dict.fromkeys(a["manifest"]["attention"] for a in archives)
    split = [code(name) for name in attention if name != "original"]
    found = []
    if "original" in attention:
        found.append(f"{code('original')} runs on `CPU & GPU` only.")
    if split:
        found.append(
            f"{' and '.join(split)}: for `CPU & Neural Engine`, and for `CPU & GPU` too. Loading "
            "**for the first time takes minutes** (5 to 10 are usual on a Mac), because Core ML "
            "compiles the model for the Neural Engine; later it takes seconds. On a Mac with many "
            "GPU cores `CPU & GPU` is faster."
        )
    found.append(
        "Variant, bits and width × height stand in each file's name. A file makes images of its "
        "own size and of no other."
    )
    for system in dict.fromkeys(a["manifest"]["minimum_system"] for a in archives):
        which = _which(archives, partial(_needs, system))
        found.append(f"System: {which} from {system.replace(', ', ' and ')} on.")
    with_encoder = _which(archives, lambda a: "vae_encoder" in a["manifest"]["components"])
    found.append(
        "**Image-to-image** does not work: the files have no VAE encoder."
        if with_encoder is None
        else f"**Image-to-image**: {with_encoder}; the VAE encoder comes with it."
    )
    chunked = _which(archives, _has_chunks)
    text = f"UNet split into {link('chunks', CHUNKS)}, for iPhones and iPads: "
    found.append(text + (chunked or "no file") + ".")
    found.append("There is no safety checker (for images that are not safe for work).")
    found.append("ControlNet cannot be used: the UNet has no inputs for it.")
    if recipe.verify.scheduler not in SWIFT_SCHEDULERS:
        name = title(recipe.verify.scheduler)
        found.append(
            f"Apple's Swift package, and so Mochi Diffusion, has no {name} scheduler: choose "
            "DPM-Solver++ there."
        )
    found.append(
        "Apple's Swift package tells every SDXL model that its image is 1024 × 1024, whatever its "
        "size; Guernika tells the true size. So the same seed gives other images in another app."
    )
    if _zeros(archives):
        found.append(
            "Without a negative prompt, apps encode an empty one, where diffusers' pipeline takes "
            "zeros: their images differ then."
        )
    found += _precisions(archives)
    if not any("clip skip" in text.lower() for text in recipe.release.advice):
        found.append(
            "**Clip skip**: nothing to set. What model cards call clip skip 2 is what SDXL always "
            "does, and so do these files."
        )
    found += _notices(archives)
    found.append("Not everything that the original model does works in Core ML.")
    return found


def _precisions(archives: Sequence[ArchiveEntry]) -> list[str]:
    """What the VAE computes in where that was found out, and by what."""
    told = [
        (a["manifest"]["vae_precision"], why)
        for a in archives
        if (why := a["manifest"].get("vae_precision_because"))
    ]
    return [f"The VAE computes in {value}: {prose(why)}." for value, why in dict.fromkeys(told)]


def _zeros(archives: Sequence[ArchiveEntry]) -> bool:
    """Whether diffusers takes zeros for an empty negative prompt, which no app does."""
    settings = [(a["manifest"].get("pipeline") or {}).get("pipeline") or {} for a in archives]
    return any(s.get("force_zeros_for_empty_prompt") is True for s in settings)


def _notices(archives: Sequence[ArchiveEntry]) -> list[str]:
    """What apps cannot express of the checkpoint, and what was done about it."""
    told = [n for a in archives for n in a["manifest"].get("notices") or ()]
    lines = [f"{prose(n['problem'])}: {prose(n['effect'])}." for n in told]
    return list(dict.fromkeys(line[0].upper() + line[1:] for line in lines))


def _which(archives: Sequence[ArchiveEntry], holds: Callable[[ArchiveEntry], bool]) -> str | None:
    """`all files`, or the names of those for which it holds; None for none."""
    found = [a for a in archives if holds(a)]
    if not found:
        return None
    if len(found) == len(archives):
        return "all files"
    return ", ".join(code(a["archive"]) for a in found)


def _needs(system: str, archive: ArchiveEntry) -> bool:
    return bool(archive["manifest"]["minimum_system"] == system)


def _has_chunks(archive: ArchiveEntry) -> bool:
    return any("Chunk" in file for file in archive["manifest"]["components"].values())
