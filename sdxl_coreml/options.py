"""Every option that several commands share, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from convert.values import Effort


def writable(path: Path | None) -> Path | None:
    """What a command may write to; raises InputError where a link on the way leads nowhere."""
    from convert.source.snapshot import require_target

    for place in (path, *path.parents) if path else ():
        require_target(place, "Give another place, or make the one that the link names.")
    return path


def out_option(text: str, metavar: str | None = None) -> Any:
    """The option `--out`, with its help."""
    return typer.Option("--out", metavar=metavar, help=text, callback=writable)


def effort_of(text: str | None) -> Effort | None:
    """The effort that `--effort` names; raises InputError if it names none."""
    from convert.errors import InputError
    from convert.values import EFFORTS

    for effort in EFFORTS:
        if text == effort:
            return effort
    if text is None:
        return None
    known = ", ".join(EFFORTS)
    raise InputError(f"unknown effort `{text}`; there are {known}", near=(text, EFFORTS))


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="The result as one JSON document on stdout.")
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source", help="Take the checkpoint from here instead: Hub repo, folder, file or URL."
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="SOURCE",
        help="Where parts come from that a single file lacks: Hub repo, folder or file.",
    ),
]
VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="SOURCE",
        help="A VAE in place of the checkpoint's own: Hub repo, folder, file or URL.",
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[=STRENGTH]",
        help="A LoRA to merge: a file, Hub repo or URL; may repeat, in this order. Strengths of "
        "its own for the text encoders need a recipe.",
    ),
]
EmbeddingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[=WORD]",
        help="An embedding (textual inversion) to add, and the word for it in prompts: a file, "
        "Hub repo or URL; may repeat.",
    ),
]
EmaOption = Annotated[
    bool,
    typer.Option("--ema", help="Take the EMA weights of a single file's UNet, not the plain ones."),
]
PredictionOption = Annotated[
    str | None,
    typer.Option(
        "--prediction",
        metavar="auto|epsilon|v",
        help="What the UNet predicts, where the checkpoint does not say so.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; by default as many as help.")
]
Only = Annotated[
    str | None, typer.Option("--only", help="Glob of artifact names, such as '*split-einsum*'.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Indeterminate counts as failed.")]
EffortOption = Annotated[
    str | None,
    typer.Option(
        "--effort",
        metavar="[quick|standard|thorough]",
        help="How much is executed: each network at a small size; and once at the true size for "
        "each attention; or every artifact at its own size, at every timestep. What the recipe "
        "says by default, else standard.",
    ),
]
RuntimeOption = Annotated[
    str, typer.Option(help="coreml (on a Mac), torch, or auto for what works here.")
]
Device = Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")]
SchedulerOption = Annotated[
    str | None,
    typer.Option(help="euler, euler_a, dpmpp_2m_karras, …; the checkpoint's own by default."),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results here; - is stdout."),
]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown.")]
Split = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Cut larger archives into parts of this size, such as 2GB."),
]
