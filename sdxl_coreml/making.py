"""The commands that make things: toy, download, plan, convert, recipes, schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convert.errors import InputError
from convert.units import size
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from convert.checkpoint.checkpoint import Checkpoint
    from convert.plan.plan import Plan
    from convert.recipe.recipe import Recipe
    from convert.run.run import Result
    from convert.source.download import Snapshot, Source

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
Json = Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout.")]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="Take the checkpoint from here instead: Hub repo or folder."),
]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; by default as many as help.")
]
Only = Annotated[
    str | None, typer.Option("--only", help="Glob of artifact names, such as '*split-einsum*'.")
]


def writable(path: Path | None) -> Path | None:
    """What a command may write to; raises InputError where a link on the way leads nowhere."""
    from convert.source.snapshot import require_target

    for place in (path, *path.parents) if path else ():
        require_target(place, "Give another place, or make the one that the link names.")
    return path


def out_option(text: str, metavar: str | None = None) -> Any:
    """The option `--out`, with its help."""
    return typer.Option("--out", metavar=metavar, help=text, callback=writable)


Calibrate = Callable[["Plan", "Snapshot", Path, Terminal], "Plan"]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (toy, download, plan, convert, recipes, schema):
        app.command()(command)


def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", callback=writable)],
    quiet: Quiet = False,
) -> None:
    """Write the toy checkpoint: a small SDXL that draws coloured shapes.

    Example: sdxl-coreml toy toy
    """
    from convert.toy import write_toy

    write_toy(folder)
    Terminal(quiet=quiet).say(f"{folder}: toy checkpoint, diffusers layout")


def download(
    source: Annotated[str, typer.Argument(help="Hub repo (owner/name) or local folder.")],
    out: Annotated[Path, out_option("Where the checkpoint goes.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; recorded as a commit.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch what a conversion needs of a checkpoint, pinned to a commit; goes on if interrupted.

    Example: sdxl-coreml download cagliostrolab/animagine-xl-3.1 --out animagine
    """
    from convert.source.download import parse_source

    terminal = Terminal(quiet=quiet, as_json=as_json)
    snapshot = fetch(parse_source(source, revision), terminal, out)
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


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    source: SourceOption = None,
    only: Only = None,
    as_json: Json = False,
) -> None:
    """Show what `run` would make: artifacts, packages and their sizes.

    Example: sdxl-coreml plan recipes/toy.toml --source toy
    """
    terminal = Terminal(as_json=as_json)
    show_plan(read_recipe(recipe), source, terminal, only=only)


def convert(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Hub repo (owner/name) or local folder.")],
    out: Annotated[Path, out_option("Output folder.")],
    name: Annotated[
        str | None,
        typer.Option(help="What artifacts are called; by default after the folder or repo."),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="original (GPU), split_einsum or split_einsum_v2 (Neural Engine)."),
    ] = None,
    resolution: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Image size in pixels.")
    ] = None,
    bits: Annotated[list[str] | None, typer.Option(help="Bits per weight.")] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Output channels that share a palette; for macOS15 and iOS18 or newer."),
    ] = None,
    component: Annotated[
        list[str] | None, typer.Option(help="Only this component; all by default.")
    ] = None,
    allocation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Widths of mixed bits, as an earlier run left them."),
    ] = None,
    deployment_target: Annotated[str, typer.Option(help="Oldest system to run on.")] = "macOS14",
    vae_precision: Annotated[
        str, typer.Option(help="float32, or float16 for a VAE made for it.")
    ] = "float32",
    engine: Annotated[str, typer.Option(help="native, or apple for comparison.")] = "native",
    revision: Annotated[str | None, typer.Option(help="Of a Hub repo.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint without a recipe; options may repeat to make several artifacts.

    Example: sdxl-coreml convert toy --out out --attention split_einsum --resolution 128x192
    """
    from convert.components import COMPONENTS
    from convert.plan.engines import ENGINES, require_engine
    from convert.plan.plan import make_plan, require_components
    from convert.recipe.options import own_name, recipe_from_options
    from convert.run.run import require_ours
    from convert.source.download import parse_source

    if engine not in ENGINES:
        raise InputError(f"unknown engine `{engine}`", hint=f"Engines: {', '.join(ENGINES)}.")
    require_components(component or [])
    require_ours(out)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    recipe = recipe_from_options(
        source,
        name=name,
        revision=revision,
        attention=attention,
        resolution=resolution,
        bits=bits,
        group_size=group_size,
        allocation=allocation,
        deployment_target=deployment_target,
        vae_precision=vae_precision,
    )
    if name is None and recipe.name != own_name(source, revision):
        terminal.say(f"Artifacts are called {recipe.name}_…; --name gives another name.")
    require_engine(engine, component or COMPONENTS, [a.bits for a in recipe.artifacts()])
    snapshot = fetch(parse_source(source, revision), terminal)
    planned = make_plan(recipe, open_snapshot(snapshot), components=component or [], engine=engine)
    results = make(planned, snapshot, out, terminal, jobs, context.obj)
    terminal.result(*results_shown(results))


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    as_json: Json = False,
) -> None:
    """List the built-in recipes, or print one to start from.

    Example: sdxl-coreml recipes sdxl-quick > my.toml
    """
    from convert.recipe.builtin import builtin_recipe_text, builtin_recipes

    terminal = Terminal(as_json=as_json)
    if name is not None:
        text = builtin_recipe_text(name)
        terminal.result({"schema": 1, "name": name, "text": text}, text.rstrip("\n"))
        return
    known = builtin_recipes()
    width = max(map(len, known))
    terminal.result(
        {"schema": 1, "recipes": known},
        "\n".join(f"{name:<{width}}  {about}" for name, about in known.items()),
    )


def schema() -> None:
    """Print the recipe's JSON schema, for editors.

    Example: sdxl-coreml schema > recipe.schema.json
    """
    from convert.recipe.recipe import json_schema

    Terminal(as_json=True).result(json_schema())


# What several commands share.


def fetch(source: Any, terminal: Terminal, out: Path | None = None) -> Snapshot:
    """A checkpoint on this disk, with the progress of its download."""
    from convert.source.download import download

    stage, advance, seen = None, None, 0

    def report(file: str, done: int, total: int) -> None:
        nonlocal stage, advance, seen
        if advance is None:
            stage = terminal.stage(f"Downloading {source.location}", total, "B")
            advance = stage.__enter__()
        advance(done - seen)
        seen = done

    try:
        return download(source, out, progress=report)
    finally:
        if stage is not None:
            stage.__exit__(None, None, None)


def read_recipe(recipe: str) -> Recipe:
    """A recipe file, or else a built-in recipe of that name, whatever folders are called so."""
    from convert.recipe.builtin import builtin_recipe_text, builtin_recipes
    from convert.recipe.recipe import load_recipe, parse_recipe

    if recipe in builtin_recipes() and not Path(recipe).is_file():
        return parse_recipe(builtin_recipe_text(recipe), where=recipe, folder=Path.cwd())
    return load_recipe(Path(recipe))


def wanted_source(recipe: Recipe, source: str | None) -> Source:
    """The recipe's source, or `source` instead."""
    from convert.source.download import Source, parse_source

    given = recipe.source
    for key in ("vae", "loras"):
        if getattr(given, key):
            raise InputError(
                f"source.{key} cannot be used by this version",
                where=recipe.name,
                hint="Leave it away, or apply it with diffusers and save the checkpoint.",
            )
    if source is not None:
        return parse_source(source)
    if given.repo:
        return Source("repo", given.repo, given.revision)
    return parse_source(str(given.path or given.url))


def open_snapshot(snapshot: Snapshot) -> Checkpoint:
    """The checkpoint, named after its repo or folder."""
    from convert.checkpoint.checkpoint import open_checkpoint

    name = snapshot.repo.rpartition("/")[2] if snapshot.repo else None
    return open_checkpoint(snapshot.path, name=name)


def show_plan(
    recipe: Recipe, source: str | None, terminal: Terminal, *, only: str | None = None
) -> None:
    """The plan of a recipe, from the headers of its checkpoint, as the command's result."""
    from tempfile import TemporaryDirectory

    from convert.plan.plan import make_plan, wanted_artifacts
    from convert.plan.text import plan_document, plan_table
    from convert.source.headers import outline

    wanted_artifacts(recipe, only)
    wanted = wanted_source(recipe, source)
    with TemporaryDirectory(prefix="sdxl-coreml-") as folder:
        if wanted.kind == "repo":
            snapshot = outline(wanted, Path(folder))
        else:
            snapshot = fetch(wanted, terminal)
        plan = make_plan(recipe, open_snapshot(snapshot), only=only)
        terminal.result(plan_document(plan), plan_table(plan))


def make(
    plan: Plan,
    snapshot: Snapshot,
    out: Path,
    terminal: Terminal,
    jobs: int | None,
    calibrate: Calibrate | None = None,
) -> list[Result]:
    """Convert, with the plan shown before and a summary after.

    Args:
        calibrate: measures mixed bits that have no allocation; the application brings it, because
            it takes PyTorch, of which this package knows nothing.
    """
    import time

    from convert.plan.text import plan_table
    from convert.run.run import require_ours, run

    require_ours(out, plan)
    terminal.say(plan_table(plan))
    start = time.monotonic()
    if plan.unmeasured:
        if calibrate is None:
            raise InputError(
                f"nothing measures {plan.unmeasured[0]} here",
                hint="Give an allocation that a run has left.",
            )
        plan = calibrate(plan, snapshot, out, terminal)
    results = run(plan, snapshot, out, jobs=jobs, progress=terminal)
    made = sum(result.fresh for result in results)
    seconds = time.monotonic() - start
    terminal.say(f"{made} artifacts made, {len(results) - made} already there, in {seconds:.0f} s")
    return results


def results_shown(results: list[Result]) -> tuple[dict[str, Any], str]:
    """What was made, as JSON and for people."""
    document = {
        "schema": 1,
        "artifacts": [
            {"artifact": r.manifest["artifact"], "path": str(r.path), "fresh": r.fresh}
            for r in results
        ],
    }
    lines = [f"{r.path}" + ("" if r.fresh else "  (was finished already)") for r in results]
    return document, "\n".join(lines)
