"""From a recipe to its plan: source → snapshot → checkpoint → jobs, in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from convert.plan.engines import Engine
from convert.plan.gather import Gathered, gather, looked_at, source_of
from convert.plan.plan import Plan, make_plan, wanted_artifacts
from convert.process.progress import Progress
from convert.recipe.recipe import Recipe
from convert.recipe.source import Ingredients
from convert.source.download import CheckpointSource, Snapshot, parse_source


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
    ingredients: Ingredients | None = None,
    looking: bool = False,
    token: str | None = None,
) -> Prepared:
    """The plan of a recipe for a checkpoint, which is downloaded if need be.

    Args:
        source: instead of the recipe's; that one if None. What another, named by a text, lacks is
            only taken from the recipe's base if it is a single file.
        only, components, engine: as `convert.plan.plan.make_plan` takes them.
        ingredients: instead of the recipe's; those if None.
        looking: the plan will not be carried out, so headers of what is not on this disk will do.
        token: for the server of a URL.

    Raises:
        InputError: as `gather` and `make_plan`.
    """
    wanted_artifacts(recipe, only)  # or an error before anything is fetched
    is_another = isinstance(source, str)
    if source is None:
        source = source_of(recipe.source)
    elif isinstance(source, str):
        source = parse_source(source)
    if ingredients is None:
        ingredients = recipe.source

    def prepared(found: Gathered) -> Prepared:
        plan = make_plan(
            recipe,
            found.checkpoint,
            only=only,
            components=components,
            engine=engine,
            digests=found.snapshot.digests,
        )
        return Prepared(plan, source, found.snapshot)

    if not looking:
        return prepared(gather(source, progress, ingredients, spare_base=is_another, token=token))
    with looked_at(source, progress, ingredients, spare_base=is_another, token=token) as found:
        return prepared(found)
