"""The commands `run`, which does everything, and `compile`; handover_commands has the others."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convert.errors import InputError
from convert.interrupts import deferred_interrupt
from convert.units import size
from sdxl_coreml import publishing as handover
from sdxl_coreml.making import (
    Jobs,
    Json,
    Only,
    Quiet,
    SourceOption,
    fetch,
    make,
    open_snapshot,
    out_option,
    read_recipe,
    results_shown,
    show_plan,
    wanted_source,
)
from sdxl_coreml.publishing import Split, license_texts, packed_shown, source_card
from sdxl_coreml.terminal import Terminal
from sdxl_coreml.verifying import Strict

if TYPE_CHECKING:
    from convert.recipe.recipe import Recipe
    from verify.campaign import Outcome


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (run, compile):
        app.command()(command)
    handover.register(app)


def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    out: Annotated[Path, out_option("Output folder.")] = Path("out"),
    only: Only = None,
    source: SourceOption = None,
    jobs: Jobs = None,
    release: Annotated[
        bool,
        typer.Option("--release/--no-release", help="Make archives and a card if all passes."),
    ] = True,
    release_passing: Annotated[
        bool,
        typer.Option(
            "--release-passing", help="Release what passes, even where another artifact does not."
        ),
    ] = False,
    split: Split = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and stop, as `plan` does.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    strict: Strict = False,
) -> int:
    """Do everything a recipe asks for: download, convert, verify, release; cached and resumable.

    Example: sdxl-coreml run toy --source toy --out out
    """
    from convert.plan.plan import make_plan, wanted_artifacts
    from convert.plan.text import plan_document
    from convert.run.run import require_ours
    from release.pack.archive import parse_size

    if release_passing and not release:
        raise InputError("--release-passing and --no-release contradict each other")
    terminal = Terminal(quiet=quiet, as_json=as_json)
    parsed = read_recipe(recipe)
    part_size = parse_size(split) if split else None
    if dry_run:
        show_plan(parsed, source, terminal, only=only)
        return 0
    wanted_artifacts(parsed, only)
    require_ours(out)
    asked = wanted_source(parsed, source)
    snapshot = fetch(asked, terminal)
    plan = make_plan(parsed, open_snapshot(snapshot), only=only)

    def repeat(artifact: str) -> str:
        words = ["verify", str(out / artifact), "--source", asked.location, "--recipe", recipe]
        return shlex.join(["sdxl-coreml", *words, "--html", "report.html"])

    if release:
        archived = sum(plan.weight_bytes(job) for a in plan.artifacts for job in a.jobs.values())
        terminal.say(f"The release's archives, which are copies, take {size(archived)} more.")
    made = make(plan, snapshot, out, terminal, jobs, context.obj)
    with deferred_interrupt():
        from release.build import build_release, releasable
        from verify.campaign import verify_all
    with terminal.working("Verifying") as say:
        outcome = verify_all(out, made, plan, command=repeat, progress=say)
    code = outcome.exit_code(strict=strict)
    packed = None
    passed = releasable(out, parsed)
    if release and (code == 0 or (release_passing and passed)):
        packed = build_release(
            passed,
            out / "release",
            reports=out / "reports",
            source=source_card(snapshot),
            licenses=license_texts(snapshot),
            split=part_size,
            progress=terminal,
        )
    document = {**plan_document(plan), **results_shown(made)[0], **outcome.document}
    if packed:
        document["release"] = packed_shown(packed)[0]
    terminal.result(document, outcome.table())
    if packed:
        terminal.say(packed_shown(packed)[1])
    elif code != 0:
        words = ["run", recipe, *_given({"--source": source, "--out": out, "--only": only})]
        again = shlex.join(["sdxl-coreml", *words, "--release-passing"]) if release else None
        for line in _unreleased(out, parsed, passed, outcome, again):
            terminal.say(line)
    terminal.say(f"Report: {out / 'reports' / 'index.html'}")
    return code


def _unreleased(
    out: Path, recipe: Recipe, passed: Sequence[Path], outcome: Outcome, again: str | None
) -> Iterator[str]:
    """What a run that did not pass means for its release, in lines.

    Args:
        passed: the artifact folders that could be released.
        again: the command that releases these; None where nobody wants a release.
    """
    from release.build import mark_unless_confirmed

    failed = [r["artifact"] for r in outcome.reports if r["verdict"] != "pass"]
    if again:
        yield "No release was made, because verification did not pass."
    if left := mark_unless_confirmed(out / "release", recipe, passed, failed):
        yield left
    if again and passed:
        yield f"This releases the {len(passed)} that passed: {again}"


def _given(options: Mapping[str, object]) -> list[str]:
    """The options that have a value, as words of a command line."""
    return [str(word) for pair in options.items() if pair[1] is not None for word in pair]


def compile(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or one .mlpackage.")],
    out: Annotated[Path, out_option("Where the .mlmodelc go.", "DIR")],
    engine: Annotated[
        str, typer.Option(help="native, xcode (on a Mac), or auto: Xcode's where it is installed.")
    ] = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile packages to .mlmodelc folders, on any system; `pack` makes the bundle that apps load.

    A bundle is more than its models: tokenizer, manifest, and names that some apps ask for.

    Example: sdxl-coreml compile out/toy_original_16-bit_128x128 --out compiled
    """
    from release.compile.mlmodelc import choose_engine, compile_package, find_packages

    terminal = Terminal(quiet=quiet, as_json=as_json)
    packages, chosen = find_packages(path), choose_engine(engine)
    compiled = []
    with terminal.stage("Compiling", len(packages), "packages") as advance:
        for package in packages:
            compiled.append(compile_package(package, out, engine=chosen))
            advance(1)
    sizes = [sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in compiled]
    terminal.result(
        {
            "schema": 1,
            "engine": chosen,
            "models": [
                {"package": str(package), "path": str(model), "bytes": count}
                for package, model, count in zip(packages, compiled, sizes, strict=True)
            ],
        },
        "\n".join(f"{m}: {size(n)}" for m, n in zip(compiled, sizes, strict=True)),
    )
    if path.suffix != ".mlpackage":
        words = shlex.join(["sdxl-coreml", "pack", str(path), "--out", "release"])
        terminal.say(f"These are models alone; apps load the bundle that this makes: {words}")
