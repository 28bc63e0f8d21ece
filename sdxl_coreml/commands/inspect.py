"""The commands that look: inspect, doctor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sdxl_coreml.options import BaseOption, EmbeddingOption, JsonOption, LoraOption, VaeOption
from sdxl_coreml.steps import url_token
from sdxl_coreml.terminal import Terminal


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="An artifact folder, one .mlpackage or .mlmodelc, a checkpoint, a VAE, a LoRA, or "
            "an embedding; of a URL, one of the last four."
        ),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Every weight: how it is stored, in how many bits.")
    ] = False,
    base: BaseOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    embedding: EmbeddingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show interface, ops, attention implementation, bits per weight, sizes and digests.

    Of a checkpoint (a folder, or a .safetensors or .ckpt file): what it is, its layout and dtypes,
    what it lacks and what of it is not used. With --base, where each part comes from; with --lora,
    what of LoRAs matches it; with --vae, what that VAE is; with --embedding, the words for it. Of a
    LoRA: its kinds, and how many modules it has of each. Of a VAE: whose it is, and what
    `--vae-precision auto` makes of it. Of an embedding: how many vectors it has, and for which
    family. Of a URL only headers are fetched, where its server sends parts of files.

    Example: sdxl-coreml inspect out/toy_original_16-bit_128x128/Unet.mlpackage
    """
    terminal, token = Terminal(as_json=as_json), url_token()
    if base or vae or lora or embedding:
        from convert.plan.gather import looked_at
        from convert.recipe.options import Added
        from convert.source.download import parse_source

        source = parse_source(path)
        added = Added(base, vae, lora or (), embedding or ()).ingredients()
        with looked_at(source, terminal, added, token=token) as gathered:
            checkpoint = gathered.checkpoint
        other, merged, words = checkpoint.other_vae, checkpoint.loras, checkpoint.embeddings
        document: dict[str, Any] = {
            "schema": 1,
            "loras": [one.to_json() for one in merged],
            "embeddings": [one.to_json() for one in words],
        }
        document |= {"vae": other.to_json()} if other else {}
        lines = [*(other.lines() if other else ()), *(one.line() for one in merged)]
        if base and (origin := checkpoint.origin):
            document["source"] = origin.to_json()
            lines = [*origin.lines(), *lines]
        lines += [one.line() for one in words]
        terminal.result(document, "\n".join(lines))
        return
    if Path(path).exists() or not path.startswith(("https://", "http://")):
        _show(Path(path), path, {}, terminal, layers=layers)
        return
    from convert.opening.vae import holds_vae_alone
    from convert.source.download import parse_source
    from convert.source.headers import looking

    with looking(terminal, token=token) as get:
        source = parse_source(path)
        snapshot = get(source)
        if source.url and holds_vae_alone(snapshot.path):
            snapshot = get(replace(source, take="vae"))  # all of it: it is known by its digest
        _show(snapshot.path, source.location, snapshot.digests, terminal, layers=layers)


def _show(
    path: Path, where: str, digests: Mapping[Path, str], terminal: Terminal, *, layers: bool
) -> None:
    """What is at a path, which people know as `where`; with digests that are known already."""
    from convert.embedding.read import holds_embedding, read_both
    from convert.lora.read import holds_lora, read_lora
    from convert.opening.contents import is_source, source_contents
    from convert.opening.vae import holds_vae_alone, open_vae
    from convert.plan.precision import told_precision

    if holds_lora(path):
        alone = read_lora(path)
        terminal.result(alone.to_json(), alone.line())
    elif holds_vae_alone(path):
        opened = open_vae(path, digests=digests)
        precision = told_precision(opened.part, digests)
        facts = {"schema": 1, "path": where, "what": "vae", **opened.applied.to_json()}
        lines = [*opened.applied.lines(), f"  {precision}"]
        terminal.result({**facts, "auto": precision.to_json()}, "\n".join(lines))
    elif holds_embedding(path):
        inversion = read_both(path)
        terminal.result(inversion.to_json(), inversion.line())
    elif is_source(path):
        held = replace(source_contents(path), path=where)
        terminal.result(held.to_json(), "\n".join(held.lines()))
    else:
        from verify.artifact.inspect import inspect as look

        found = look(path, by_layer=layers)
        terminal.result(found.to_json(), "\n".join(found.lines()))


def doctor(as_json: JsonOption = False) -> None:
    """Show what works here and what does not: versions, disk, memory, Core ML, Xcode, Hub login.

    Example: sdxl-coreml doctor
    """
    from dataclasses import asdict

    from sdxl_coreml.doctor import diagnose

    findings = diagnose()
    marks = {"ok": "✓", "missing": "✗", "note": "·"}
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{marks[f.status]} {f.name:<{width}}  {f.value}")
        if f.remedy:
            lines.append(f"{'':<{width + 4}}{f.remedy}")
    document: dict[str, Any] = {"schema": 1, "findings": [asdict(f) for f in findings]}
    Terminal(as_json=as_json).result(document, "\n".join(lines))
