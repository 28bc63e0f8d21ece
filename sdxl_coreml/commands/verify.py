"""The command `verify`."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convert.errors import InputError
from convert.process.interrupts import deferred_interrupt
from sdxl_coreml.options import (
    BaseOption,
    EffortOption,
    EmaOption,
    EmbeddingOption,
    LoraOption,
    PredictionOption,
    Quiet,
    Strict,
    VaeOption,
    effort_of,
)
from sdxl_coreml.steps import require_writable, url_token, warn_of_others, write_report
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from verify.judge.checks import Results

STDOUT = Path("-")


def verify(
    path: Annotated[
        Path, typer.Argument(help="An artifact folder, or one .mlpackage or .mlmodelc.")
    ],
    source: Annotated[
        str | None, typer.Option("--source", help="The checkpoint it was made from.")
    ] = None,
    base: BaseOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    embedding: EmbeddingOption = None,
    prediction: PredictionOption = None,
    ema: EmaOption = False,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `record` wrote: replayed instead of the reference."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="coreml (on a Mac), torch, or auto for what works here.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of PyTorch: cpu, cuda or mps.")] = "cpu",
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="structure, weights, graph, conversion and compression by default; generation and "
            "sanity make whole pictures with the reference and the artifact, which takes long at "
            "full size."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Levels, prompts, scheduler and steps from this recipe's [verify]."),
    ] = None,
    effort: EffortOption = None,
    component: Annotated[list[str] | None, typer.Option(help="Only this component.")] = None,
    timesteps: Annotated[
        list[int] | None,
        typer.Option(
            "--timestep",
            min=0,
            max=999,
            help="Compare the UNet at this one; may repeat. Six by default: 999 alone is a short "
            "check of a full-size model.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Compare at 256x256, with the packages' own weights in graphs made for that size: "
            "minutes for a full-size model.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the results here; - is stdout."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that anyone can read.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds; the built-in ones by default.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also compare with these results.")
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> int:
    """Check an artifact, or one package, against the checkpoint in PyTorch.

    With --golden the recorded reference is replayed, pictures included, and --source may be left
    out.

    Example: sdxl-coreml verify out/toy_original_16-bit_128x128 --source toy
    """
    from convert.plan.gates import require_gates, require_gates_for
    from convert.plan.gather import NOTHING, open_source
    from convert.recipe.builtin import read_recipe
    from convert.recipe.options import Added
    from convert.recipe.sections import Verify
    from convert.run.manifest import read as read_manifest
    from convert.source.download import parse_source
    from convert.values import COMPONENT_LEVELS

    with deferred_interrupt():
        from rich.console import Group

        from verify import golden as bundles
        from verify.artifact.artifact import artifact_name
        from verify.artifact.folder import SUFFIXES
        from verify.artifact.probe import PROBE
        from verify.judge.checks import PICTURE_LEVELS
        from verify.judge.policy import load_policy
        from verify.question import Evidence, Question, require_possible
        from verify.reports import diff_text as diff_report
        from verify.reports import report
        from verify.reports.baseline import read_baseline
        from verify.reports.diff import diff as compare
        from verify.run import verify as check
        from verify.runtime.runtimes import choose

    files = _Files(json_file, junit, markdown, html)
    terminal = Terminal(quiet=quiet, as_json=json_file == STDOUT)
    if not path.exists():
        raise InputError("no such file or folder", where=path)
    parsed = read_recipe(recipe) if recipe else None
    asked = parsed.verify if parsed else Verify()
    if source is None and golden is None:
        raise InputError(
            "nothing to compare with",
            hint="Give the checkpoint it was made from with --source, or a recording of it with "
            "--golden.",
        )
    # Without the checkpoint's weights there is nothing to compare weights and graphs with.
    levels = COMPONENT_LEVELS if source is None and parsed is None else asked.levels
    chooses = not (golden or probe or timesteps)  # what else says what is executed
    question = Question(
        levels=level or levels,
        components=component,
        timesteps=sorted(set(timesteps), reverse=True) if timesteps else None,
        probe=PROBE if probe else None,
        recipe=asked,
        policy=load_policy(policy),
        effort=effort_of(effort) or (asked.effort if chooses else "thorough"),
        runtime=choose(runtime, device=device),
        device=device,
    )
    require_possible(path, question, golden=golden is not None)
    require_writable(*astuple(files))
    before = None if baseline is None else read_baseline(baseline, artifact_name(path))
    recorded = bundles.read_golden(golden) if golden else None
    if recorded and recorded.traces and not (level or recipe) and path.suffix not in SUFFIXES:
        question = replace(question, levels=(*levels, *PICTURE_LEVELS))
    checkpoint, unlike = None, ""
    if source is not None:
        recipes = parsed.source if parsed else NOTHING
        checkpoint = open_source(
            parse_source(source),
            terminal,
            recipes.updated(
                Added(base, vae, lora or (), embedding or (), prediction, ema).ingredients()
            ),
            spare_base=base is None,
            token=url_token(),
        )
        unlike = warn_of_others(terminal, path, checkpoint)
    evidence = Evidence(checkpoint, golden=recorded)
    if parsed is not None:
        require_gates(parsed, evidence.reference.components)
        made = read_manifest(path)
        if made is not None:
            require_gates_for(parsed, made["bits"], str(path))
    with terminal.working("Verifying") as say:
        results = check(path, evidence, question, say=say)
    if unlike:
        results = replace(results, scope=f"{results.scope}; {unlike}")
    document, summary = report.to_json(results), report.markdown(results)
    shown = report.table(results)
    code = results.exit_code(strict=strict)
    if before is not None:
        found = compare(before, [document], question.policy)
        document["diff"] = found.to_json()
        summary += "\n" + diff_report.markdown(found)
        shown = Group(shown, diff_report.table(found))
        code = code if found else 1
    files.write(results, document, summary)
    terminal.result(document, shown)
    return code


@dataclass(frozen=True)
class _Files:
    """Where the results are written, beside the terminal."""

    json: Path | None
    junit: Path | None
    markdown: Path | None
    html: Path | None

    def write(self, results: Results, document: dict[str, Any], summary: str) -> None:
        """Write those that are asked for; raises InputError if one cannot be written.

        Args:
            document: the results as JSON.
            summary: in Markdown.
        """
        from verify.page.page import html
        from verify.reports import report

        images = report.pictures(results)
        if self.json and self.json != STDOUT:
            write_report(self.json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            for name, image in images.items():
                write_report(self.json.parent / name, image)
        if self.junit:
            write_report(self.junit, report.junit(results))
        if self.markdown:
            write_report(self.markdown, summary)
        if self.html:
            write_report(self.html, html(document, images, command=_command_line()))


def _command_line() -> str:
    """This command as it was typed."""
    import shlex
    import sys

    return shlex.join(["sdxl-coreml", *sys.argv[1:]])
