"""From a recipe to its plan: source → snapshot → checkpoint → jobs, in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    source: CheckpointSource,
    progress: Progress,
    *,
    only: str | None = None,
    components: Iterable[str] = (),
    engine: Engine = "native",
    headers: Path | None = None,
) -> Prepared:
    """The plan of a recipe for a checkpoint, which is downloaded if need be.

    Args:
        only, components, engine: as `convert.plan.plan.make_plan` takes them.
        headers: an empty folder for what a plan needs of a Hub repo, whose weights are not fetched
            then: it can be looked at, and not carried out.

    Raises:
        InputError: as `download`, `open_checkpoint` and `make_plan`.
    """
    wanted_artifacts(recipe, only)  # or an error before anything is fetched
    if headers is not None and source.kind == "repo":
        snapshot = fetch_headers(source, headers)
    else:
        snapshot = fetch(source, progress)
    checkpoint = open_snapshot(snapshot)
    plan = make_plan(recipe, checkpoint, only=only, components=components, engine=engine)
    return Prepared(plan, source, snapshot)


def source_of(recipe: Recipe, source: str | None = None) -> CheckpointSource:
    """The recipe's source, or `source` instead."""
    given = recipe.source
    if source is not None:
        return parse_source(source)
    if given.repo:
        return CheckpointSource("repo", given.repo, given.revision)
    return parse_source(str(given.path))


def open_source(source: CheckpointSource, progress: Progress) -> Checkpoint:
    """The checkpoint at a source, downloaded if need be."""
    return open_snapshot(fetch(source, progress))


def open_snapshot(snapshot: Snapshot) -> Checkpoint:
    """The checkpoint, named after its repo or folder."""
    name = snapshot.repo.rpartition("/")[2] if snapshot.repo else None
    return open_checkpoint(snapshot.path, name=name)
