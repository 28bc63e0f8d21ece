"""The command `bisect`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from convert.errors import InputError
from sdxl_coreml.options import (
    BaseOption,
    EmaOption,
    EmbeddingOption,
    JsonOption,
    LoraOption,
    PredictionOption,
    Quiet,
    VaeOption,
    out_option,
)
from sdxl_coreml.steps import require_new_folder, url_token
from sdxl_coreml.terminal import Terminal


def bisect(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or one .mlpackage.")],
    source: Annotated[str, typer.Option("--source", help="The checkpoint it was made from.")],
    base: BaseOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    embedding: EmbeddingOption = None,
    prediction: PredictionOption = None,
    ema: EmaOption = False,
    component: Annotated[list[str] | None, typer.Option(help="Only this component.")] = None,
    case: Annotated[
        str | None, typer.Option(help="Which recorded run, such as t=500; the first by default.")
    ] = None,
    out: Annotated[
        Path | None, out_option("Write the ops to blame as a package, with inputs.", "DIR")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Look at 256x256, with the packages' own weights in graphs made for that size: "
            "a full-size model does not fit into memory at its own.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")] = "cpu",
    as_json: JsonOption = False,
    quiet: Quiet = False,
) -> int:
    """Find the first op that diverges from the checkpoint's modules in PyTorch, and why.

    Graph, weights, palettes and precision are told apart; an op that overflows is named.

    Example: sdxl-coreml bisect out/toy_original_16-bit_128x128 --source toy --component unet
    """
    from convert.components import COMPONENTS
    from convert.plan.gather import open_source
    from convert.process.interrupts import deferred_interrupt
    from convert.recipe.options import Added
    from convert.source.download import parse_source

    with deferred_interrupt():
        from verify.artifact.probe import PROBE, probe_folder
        from verify.bisect.report import (
            bisect_artifact,
            findings_folders,
            lines,
            require_case,
            write_findings,
        )
        from verify.question import Question, require_possible
        from verify.runtime.runtimes import require_device

    if not path.exists():
        raise InputError("no such file or folder", where=path)
    question = Question(
        levels=("conversion",), components=component, probe=PROBE if probe else None
    )
    require_possible(path, question)
    require_case(case, component or tuple(COMPONENTS))
    require_device(device)
    if out is not None:
        for name in component or COMPONENTS:
            for place in findings_folders(out, name):
                require_new_folder(place)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    added = Added(base, vae, lora or (), embedding or (), prediction, ema).ingredients()
    checkpoint = open_source(parse_source(source), terminal, added, token=url_token())
    with ExitStack() as stack:
        folder = stack.enter_context(probe_folder(path)) if probe else None
        with terminal.working("Bisecting") as say:
            found = bisect_artifact(
                path,
                checkpoint,
                components=component,
                case=case,
                probe=folder,
                device=device,
                say=say,
            )
        if out is not None:
            for package in write_findings(found, out):
                terminal.say(f"written: {package}")
    document = {"schema": 1, "bisections": [b.to_json() for _, b in found]}
    terminal.result(document, "\n".join(line for _, b in found for line in lines(b)))
    return 0 if all(b for _, b in found) else 1
