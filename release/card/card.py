"""The model card: README.md of a release, from its manifest, recipe, reports and source card.

Whatever the card says of a file was measured or read from that file's own manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.files.appearing import appearing
from convert.recipe import schedulers
from convert.recipe.recipe import Recipe, parse_recipe
from convert.units import size
from convert.weights.compress import UNCOMPRESSED
from release.card.facts import facts
from release.card.licenses import license_front
from release.card.markdown import block, bullets, code, escape, image, link, prose, table
from release.card.source_card import MARK, SourceCard
from release.card.verified import (
    evidence_cell,
    gates_note,
    says_evidence,
    sizes_note,
    snr_cell,
    verified_section,
)

TAGS = ["coreml", "text-to-image", "stable-diffusion-xl"]
TOOL = "sdxl-coreml"
UNITS = {"original": "CPU & GPU"}
SPLIT_UNITS = "CPU & Neural Engine, or CPU & GPU"


@dataclass(frozen=True)
class Sample:
    """An image made with one of the files while it was verified."""

    file: str  # relative to the card
    artifact: str
    generation: Mapping[str, Any]  # as reports have it


def compose(
    manifest: Mapping[str, Any],
    *,
    source: SourceCard | None = None,
    samples: Sequence[Sample] = (),
) -> str:
    """The card of a release, front matter included.

    Args:
        manifest: the release's, each archive with its bundle's manifest.
        source: the source model's card; None if there is none.
    """
    recipe = parse_recipe(manifest["recipe"]["text"], where="the release's recipe")
    title = recipe.release.title or recipe.name
    base = recipe.release.base_model or manifest["source"]["repo"]
    sections = [
        f"# {escape(title)} for Core ML",
        _opening(title, base, manifest),
        "## Files",
        *_files(manifest),
        "## Before you download",
        bullets(facts(manifest, recipe)),
        *_samples(samples),
        "## Recommended settings",
        *_settings(recipe, manifest),
        *verified_section(manifest["archives"]),
        "## How it was made",
        *_making(manifest),
    ]
    if source is not None:
        sections += _copied(source, base)
    return _front(recipe, manifest, base, source) + "\n\n".join(sections) + "\n"


def _front(
    recipe: Recipe, manifest: Mapping[str, Any], base: str | None, source: SourceCard | None
) -> str:
    """The YAML at the top, written by huggingface_hub."""
    from huggingface_hub import ModelCardData

    release, given = recipe.release, source.data if source else {}
    language = list(release.language or ()) or given.get("language")
    is_quantized = any(a["manifest"]["bits"] != "16" for a in manifest["archives"])
    values: dict[str, Any] = {
        "language": language,
        "base_model": base,
        "pipeline_tag": "text-to-image",
        "tags": TAGS,
        **license_front(recipe, source),
    }
    if base and is_quantized:
        values["base_model_relation"] = "quantized"
    data = ModelCardData(**values)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _opening(title: str, base: str | None, manifest: Mapping[str, Any]) -> str:
    origin = link(title, f"https://huggingface.co/{base}") if base else escape(title)
    unverified = [a["archive"] for a in manifest["archives"] if a["manifest"]["verdict"] != "pass"]
    text = (
        f"{origin}, converted to "
        f"{link('Core ML', 'https://developer.apple.com/documentation/coreml')} for Macs and "
        "iPhones with Apple silicon. Load it with "
        f"{link('Mochi Diffusion', 'https://github.com/MochiDiffusion/MochiDiffusion')}, "
        f"{link('Guernika', 'https://github.com/GuernikaCore/GuernikaKit')} or Apple's "
        f"{link('Swift package', 'https://github.com/apple/ml-stable-diffusion')}."
    )
    if unverified:
        names = ", ".join(code(name) for name in unverified)
        text += f"\n\n**Not verified**: {names}. Their verification was not done, or did not pass."
    return text


def _files(manifest: Mapping[str, Any]) -> list[str]:
    """The table of the files, and what its columns mean."""
    rows = []
    archives = manifest["archives"]
    is_told = says_evidence(archives)
    is_compressed = any(a["manifest"]["bits"] != UNCOMPRESSED for a in archives)
    for archive in archives:
        own = archive["manifest"]
        parts = [link(f["name"], f["name"]) for f in archive["files"]]
        cells = [
            "<br>".join(parts),
            code(own["attention"], in_table=True),
            own["resolution"].replace("x", " × "),
            escape(own["bits"]),
            f"{own['bits_per_weight']['unet']:.2f}" if "unet" in own["bits_per_weight"] else "–",
            size(archive["size"]).replace(" ", "&nbsp;"),
            UNITS.get(own["attention"], SPLIT_UNITS),
            own["minimum_system"],
            snr_cell(archive, "checkpoint"),
        ]
        cells += [snr_cell(archive, "program")] if is_compressed else []
        rows.append([*cells, evidence_cell(archive)] if is_told else cells)
    heads = [
        "File", "Variant", "Width × height", "Bits", "UNet, bits per weight", "Size",
        "Compute units", "From", "SNR, checkpoint",
    ]  # fmt: skip
    notes = [
        "SNR, checkpoint: the lowest signal-to-noise ratio of any model's output against PyTorch "
        "in float32 with the checkpoint's own weights, 10·log10(Σref² / Σ(ref − out)²)."
        + gates_note(archives, "compression" if is_compressed else "conversion")
        + sizes_note(archives)
    ]
    if is_compressed:
        heads.append("SNR, program")
        notes.append(
            "SNR, program: the same with the file's own weights in PyTorch: what the networks and "
            "their precision cost, compression left out." + gates_note(archives, "conversion")
        )
    if is_told:
        heads.append("Evidence")
        notes.append("Evidence: how the file was verified, see below.")
    notes.append("`sha256sum --check SHA256SUMS` checks what you have downloaded.")
    joined = [a for a in archives if len(a["files"]) > 1]
    if joined:
        name = joined[0]["archive"]
        notes.append(
            "Archives that come in parts are joined before they are unpacked: "
            f"{code(f'cat {name}.* > {name}')}."
        )
    return [table(heads, rows, "lllrrrllr" + "r" * is_compressed + "l" * is_told), bullets(notes)]


def _samples(samples: Sequence[Sample]) -> list[str]:
    """The images of the verification, each with what made it."""
    if not samples:
        return []
    parts = ["## Samples", "Made with these files while they were verified."]
    for sample in samples:
        made = sample.generation
        scheduler = schedulers.title(str(made["scheduler"]))
        line = (
            f"{code(sample.artifact)}, {made['kind']}, {escape(scheduler)}, {made['steps']} steps, "
            f"guidance {made['guidance']:g}"
        )
        if made.get("psnr_db") is not None:
            line += f"; PSNR {float(made['psnr_db']):.1f} dB against PyTorch's image"
        parts += [image(str(made["prompt"])[:80], sample.file), line + ":", block(made["prompt"])]
    return parts


def _settings(recipe: Recipe, manifest: Mapping[str, Any]) -> list[str]:
    """Scheduler, steps and guidance, prompts, tags and sizes; from the recipe."""
    verify, release = recipe.verify, recipe.release
    rows = [
        ["Scheduler", escape(schedulers.title(verify.scheduler))],
        ["Steps", str(verify.steps)],
        ["Guidance scale (CFG)", f"{verify.guidance:g}"],
    ]
    parts = [table(["Setting", "Value"], rows)]
    negative = release.negative_prompt or verify.negative_prompt
    for text, value in (
        ("Write prompts in this order:", release.prompt_template),
        ("Start prompts with:", release.quality_tags),
        ("Negative prompt:", negative),
    ):
        if value:
            parts += [text, block(value)]
    if release.advice:
        parts.append(bullets([escape(text) for text in release.advice]))
    sizes = dict.fromkeys(a["manifest"]["resolution"] for a in manifest["archives"])
    parts += ["### Sizes", _sizes(list(sizes))]
    for tags in release.tag_tables:
        cells = [
            [code(row[0], in_table=True), *(escape(cell) for cell in row[1:])] for row in tags.rows
        ]
        parts += [
            f"### Tags: {escape(tags.title)}",
            table([escape(head) for head in tags.columns], cells),
        ]
    return parts


def _sizes(found: Sequence[str]) -> str:
    """The sizes that there are files for, and their shape."""
    rows = []
    for text in found:
        width, height = (int(side) for side in text.split("x"))
        divisor = math.gcd(width, height)
        kind = "square" if width == height else "landscape" if width > height else "portrait"
        ratio = f"{width // divisor}:{height // divisor}"
        rows.append([f"{width} × {height}", ratio, kind])
    return table(["Width × height", "Aspect ratio", "Shape"], rows)


def _making(manifest: Mapping[str, Any]) -> list[str]:
    """How to repeat it: source, recipe, versions, deviations, verification."""
    source, versions = manifest["source"], manifest["versions"]
    first = manifest["archives"][0]["manifest"]
    where = f"{source['repo']} at commit {source['commit']}" if source["repo"] else source["name"]
    parts = [
        f"Converted with {TOOL} {escape(versions[TOOL])} from {code(where)}: the networks are "
        "written directly as ML Programs around the checkpoint's own weights. The same recipe "
        "gives the same files:",
        block(f"{TOOL} run recipe.toml --out out", "sh"),
        "<details><summary>recipe.toml</summary>",
        block(manifest["recipe"]["text"], "toml"),
        "</details>",
        "Versions: " + ", ".join(f"{escape(n)} {escape(v)}" for n, v in versions.items()) + ".",
    ]
    if base := source.get("base"):
        commit = f" at commit {code(base['commit'])}" if base.get("commit") else ""
        name = code(base.get("repo") or base["name"])
        parts.append(f"What the checkpoint's file lacks comes from {name}{commit}.")
    if source.get("vae"):
        parts.append(_vae(source["vae"]))
    if source.get("loras"):
        parts.append("Merged into the weights, in this order:")
        parts.append(bullets([_lora(lora) for lora in source["loras"]]))
    if source.get("embeddings"):
        parts.append("Embeddings (textual inversions) in the text encoders:")
        parts.append(bullets([_embedding(embedding) for embedding in source["embeddings"]]))
    checked = first.get("verification")
    if checked:
        how = "Verified" if says_evidence(manifest["archives"]) else "Verified op by op"
        parts.append(
            f"{how} ({escape(checked['runtime'])}, policy {escape(checked['policy'])}):"
            f" {escape(checked['scope'])}. Each archive's `manifest.json` has the figures, the "
            "SHA-256 of the checkpoint's files and its own, and the bits per weight of each model."
        )
    parts.append("Where the graphs differ from those of Apple's converter, and why:")
    parts.append(bullets([f"{prose(d['what'])} {prose(d['why'])}" for d in first["deviations"]]))
    return parts


def _vae(vae: Mapping[str, Any]) -> str:
    """The VAE in place of the checkpoint's own: where it is from, whose it is, its digests."""
    commit = f" at commit {code(vae['commit'])}" if vae.get("commit") else ""
    known = f", which is {escape(vae['known'])}" if vae.get("known") else ""
    license_ = f" (licence: {escape(vae['license'])})" if vae.get("license") else ""
    digests = ", ".join(code(digest) for digest in vae["files"].values() if digest)
    return (
        f"In place of the checkpoint's own VAE: {code(vae['name'])}{commit}{known}{license_}, "
        f"SHA-256 {digests}."
    )


def _lora(lora: Mapping[str, Any]) -> str:
    """A LoRA that was merged: its file, strengths and digest, and what of it was not applied."""
    strengths = f"strength {lora['scale']}"
    if lora["text_scale"] != lora["scale"]:
        strengths += f", of the text encoders {lora['text_scale']}"
    name = lora["file"].rpartition("/")[2]
    digest = f", SHA-256 {code(lora['sha256'])}" if lora["sha256"] else ""
    ignored = "".join(f"; not applied: {escape(what)}" for what in lora["ignored"])
    return f"{code(name)} ({escape(', '.join(lora['kinds']))}), {strengths}{digest}{ignored}"


def _embedding(embedding: Mapping[str, Any]) -> str:
    """An embedding that was added: how it is written, and its files' digests."""
    files = [
        code(name.rpartition("/")[2]) + (f", SHA-256 {code(digest)}" if digest else "")
        for name, digest in embedding["files"].items()
    ]
    notes = "".join(f"; {prose(note)}" for note in embedding["notes"])
    return f"{code(' '.join(embedding['words']))} ({'; '.join(files)}){notes}"


def _copied(source: SourceCard, base: str | None) -> list[str]:
    where = link(base, f"https://huggingface.co/{base}") if base else "the source model"
    return [
        "---",
        f"*The rest of this card was copied from {where}. It describes the original model, not "
        "this conversion.*",
        MARK,
        source.text,
    ]


def write_card(folder: Path, text: str) -> Path:
    """Write README.md into a release folder, in one piece."""
    path = folder / "README.md"
    with appearing(path) as new:
        new.write_text(text, "utf-8")
    return path
