"""The command `convert`: artifacts without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convert.errors import InputError
from sdxl_coreml.options import (
    BaseOption,
    EmaOption,
    EmbeddingOption,
    Jobs,
    JsonOption,
    LoraOption,
    PredictionOption,
    Quiet,
    VaeOption,
    out_option,
)
from sdxl_coreml.steps import make, results_shown, url_token
from sdxl_coreml.terminal import Terminal


def convert(
    source: Annotated[str, typer.Argument(help="Hub repo (owner/name), URL, folder or file.")],
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
        str, typer.Option(help="float32, float16 for a VAE made for it, or auto: what it fits in.")
    ] = "float32",
    engine: Annotated[str, typer.Option(help="native, or apple for comparison.")] = "native",
    base: BaseOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    embedding: EmbeddingOption = None,
    prediction: PredictionOption = None,
    ema: EmaOption = False,
    revision: Annotated[str | None, typer.Option(help="Of a Hub repo.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint without a recipe; options may repeat to make several artifacts.

    Example: sdxl-coreml convert toy --out out --attention split_einsum --resolution 128x192
    """
    from convert.components import COMPONENTS
    from convert.plan.engines import ENGINES, require_engine
    from convert.plan.plan import require_components
    from convert.plan.prepare import prepare
    from convert.plan.text import plan_table
    from convert.recipe.options import Added, own_name, recipe_from_options
    from convert.run.run import require_ours
    from convert.source.download import parse_source

    if engine not in ENGINES:
        raise InputError(f"unknown engine `{engine}`", hint=f"Engines: {', '.join(ENGINES)}.")
    require_components(component or [])
    require_ours(out)
    terminal = Terminal(quiet=quiet, as_json=as_json)
    added = Added(base, vae, lora or (), embedding or (), prediction, ema)
    recipe = recipe_from_options(
        source,
        name=name,
        revision=revision,
        added=added,
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
    wanted = parse_source(source, revision)
    prepared = prepare(
        recipe,
        wanted,
        terminal,
        components=component or [],
        engine=engine,
        ingredients=added.ingredients(),  # the recipe's are without what a URL holds of secrets
        token=url_token(),
    )
    plan = prepared.plan
    require_ours(out, plan)
    terminal.say(plan_table(plan))
    results = make(plan, prepared.snapshot, out, terminal, jobs)
    terminal.result(*results_shown(results))
