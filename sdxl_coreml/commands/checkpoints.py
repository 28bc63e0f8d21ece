"""The commands that bring a checkpoint here: toy, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convert.units import size
from sdxl_coreml.options import JsonOption, Quiet, out_option, writable
from sdxl_coreml.steps import require_writable, url_token
from sdxl_coreml.terminal import Terminal


def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", callback=writable)],
    single: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write it as a single .safetensors file (LDM's names), too; its configs and "
            "tokenizers are in DIR, which is its --base.",
            callback=writable,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write the toy checkpoint: a small SDXL that draws coloured shapes.

    Example: sdxl-coreml toy toy --single toy.safetensors
    """
    from convert.toy import require_new_file, write_toy, write_toy_file

    terminal = Terminal(quiet=quiet)
    if single is not None:
        require_new_file(single)
        require_writable(single)
    write_toy(folder)
    terminal.say(f"{folder}: toy checkpoint, diffusers layout")
    if single is not None:
        write_toy_file(single)
        terminal.say(f"{single}: the same as a single file; give --base {folder} with it")


def download(
    source: Annotated[str, typer.Argument(help="Hub repo (owner/name), folder, file or URL.")],
    out: Annotated[Path, out_option("Where the checkpoint goes.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; recorded as a commit.")
    ] = None,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch what a conversion needs of a checkpoint, pinned to a commit; goes on if interrupted.

    Example: sdxl-coreml download cagliostrolab/animagine-xl-3.1 --out animagine
    """
    from convert.source.download import fetch, parse_source

    terminal = Terminal(quiet=quiet, as_json=as_json)
    snapshot = fetch(parse_source(source, revision), terminal, out, token=url_token())
    total = sum(file.size for file in snapshot.files)
    terminal.result(
        {
            "schema": 1,
            "path": str(snapshot.path),
            "repo": snapshot.repo,
            "commit": snapshot.commit,
            "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in snapshot.files],
        },
        f"{snapshot.path}: {len(snapshot.files)} files, {size(total)}"
        + (f", {snapshot.repo}@{snapshot.commit}" if snapshot.repo else ""),
    )
