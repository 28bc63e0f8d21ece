"""From a recipe to its plan: source → snapshot → checkpoint → jobs, in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from convert.checkpoint.checkpoint import Checkpoint, open_checkpoint
from convert.plan.engines import Engine
from convert.plan.plan import Plan, make_plan, wanted_artifacts
from convert.progress import Progress
from convert.recipe.recipe import Recipe
from convert.source.download import CheckpointSource, Snapshot, fetch, parse_source
from convert.source.headers import fetch_headers


@dataclass(frozen=True)
class Prepared:
    """A plan, and where the checkpoint that it is for was found."""

    plan: Plan
    source: CheckpointSource
    snapshot: Snapshot


def prepare(
    recipe: Recipe,
    source: CheckpointSource | str | None,
    progress: Progress,
    *,
    only: str | None = None,
    components: Iterable[str] = (),
    engine: Engine = "native",
    looking: bool = False,
) -> Prepared:
    """The plan of a recipe for a checkpoint, which is downloaded if need be.

    Args:
        source: instead of the recipe's; that one if None.
        only, components, engine: as `convert.plan.plan.make_plan` takes them.
        looking: the plan will not be carried out, so the headers of a Hub repo's weights will do.

    Raises:
        InputError: as `download`, `open_checkpoint` and `make_plan`.
    """
    wanted_artifacts(recipe, only)  # or an error before anything is fetched
    given = recipe.source
    if source is None and given.repo:
        source = CheckpointSource("repo", given.repo, given.revision)
    elif not isinstance(source, CheckpointSource):
        source = parse_source(str(given.path) if source is None else source)
    with TemporaryDirectory(prefix="sdxl-coreml-") as folder:
        if looking and source.kind == "repo":
            snapshot = fetch_headers(source, Path(folder))
        else:
            snapshot = fetch(source, progress)
        checkpoint = open_checkpoint(snapshot.path, name=snapshot.name)
    plan = make_plan(recipe, checkpoint, only=only, components=components, engine=engine)
    return Prepared(plan, source, snapshot)


def open_source(source: CheckpointSource, progress: Progress) -> Checkpoint:
    """The checkpoint at a source, downloaded if need be."""
    snapshot = fetch(source, progress)
    return open_checkpoint(snapshot.path, name=snapshot.name)
