"""From a recipe to its plan: source → snapshot → checkpoint → jobs, in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from convert.checkpoint.checkpoint import Checkpoint
from convert.lora.apply import Lora, apply
from convert.opening.door import open_checkpoint
from convert.plan.engines import Engine
from convert.plan.plan import Plan, make_plan, wanted_artifacts
from convert.process.progress import Progress
from convert.recipe.recipe import Recipe
from convert.recipe.sections import LoraSource, Source
from convert.source.download import CheckpointSource, Snapshot, fetch, parse_source
from convert.source.headers import fetch_headers

Get = Callable[[CheckpointSource], Snapshot]  # a source, on this disk


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
    base: str | None = None,
    looking: bool = False,
    token: str | None = None,
) -> Prepared:
    """The plan of a recipe for a checkpoint, which is downloaded if need be.

    Args:
        source: instead of the recipe's; that one if None. What another, named by a text, lacks is
            only taken from the recipe's base if it is a single file.
        only, components, engine: as `convert.plan.plan.make_plan` takes them.
        base: instead of the recipe's; that one if None.
        looking: the plan will not be carried out, so the headers of a Hub repo's weights will do.
        token: for the server of a URL.

    Raises:
        InputError: as `download`, `open_checkpoint`, `apply` and `make_plan`.
    """
    wanted_artifacts(recipe, only)  # or an error before anything is fetched
    is_another = isinstance(source, str)
    if source is None:
        source = source_of(recipe.source)
    elif isinstance(source, str):
        source = parse_source(source)
    with TemporaryDirectory(prefix="sdxl-coreml-") as folder:
        found = 0

        def get(wanted: CheckpointSource) -> Snapshot:
            nonlocal found
            if looking and wanted.kind == "repo":
                found += 1
                return fetch_headers(wanted, Path(folder, str(found)))
            return fetch(wanted, progress, token=token)

        snapshot = get(source)
        if base is None and (not is_another or snapshot.path.is_file()):
            base = recipe.source.base
        snapshot = _with_base(snapshot, base, get)
        loras = [_on_disk(lora, lambda wanted: fetch(wanted, progress)) for lora in _loras(recipe)]
        checkpoint = opened(snapshot, loras)
    plan = make_plan(recipe, checkpoint, only=only, components=components, engine=engine)
    return Prepared(plan, source, snapshot)


def open_source(
    source: CheckpointSource,
    progress: Progress,
    recipe: Recipe | None = None,
    *,
    base: str | None = None,
    loras: Sequence[LoraSource] = (),
    token: str | None = None,
) -> Checkpoint:
    """The checkpoint at a source, downloaded if need be.

    Args:
        recipe: says base and LoRAs where these are not given.
        base: where parts come from that the source lacks.
        loras: what is merged into it.
        token: for the server of a URL.
    """
    snapshot = fetch_whole(source, progress, recipe, base=base, token=token)
    found = [_on_disk(lora, lambda s: fetch(s, progress)) for lora in _loras(recipe) or loras]
    return opened(snapshot, found)


def fetch_whole(
    source: CheckpointSource,
    progress: Progress,
    recipe: Recipe | None = None,
    *,
    base: str | None = None,
    token: str | None = None,
) -> Snapshot:
    """A checkpoint on this disk, with what supplies the parts that it lacks; as `open_source`."""

    def get(wanted: CheckpointSource) -> Snapshot:
        return fetch(wanted, progress, token=token)

    snapshot = get(source)
    if base is None and recipe is not None and snapshot.path.is_file():
        base = recipe.source.base
    return _with_base(snapshot, base, get)


def _with_base(snapshot: Snapshot, base: str | None, get: Get) -> Snapshot:
    return snapshot if base is None else replace(snapshot, base=get(parse_source(base)))


def source_of(given: Source) -> CheckpointSource:
    """Where a recipe's checkpoint comes from."""
    if given.repo:
        return CheckpointSource("repo", given.repo, given.revision, given.file, given.sha256)
    return replace(parse_source(given.url or str(given.path)), sha256=given.sha256)


def opened(snapshot: Snapshot, loras: Sequence[Lora] = ()) -> Checkpoint:
    """The checkpoint of a snapshot, with what its base supplies, and with LoRAs merged."""
    base = opened(snapshot.base) if snapshot.base else None
    checkpoint = open_checkpoint(snapshot.path, name=snapshot.name, base=base)
    return apply(checkpoint, loras)[0] if loras else checkpoint


def _loras(recipe: Recipe | None) -> Sequence[LoraSource]:
    return recipe.source.loras if recipe else ()


def _on_disk(lora: LoraSource, get: Get) -> Lora:
    path = Path(lora.path or "")
    if lora.repo is not None:
        path = get(CheckpointSource("repo", lora.repo, lora.revision, lora.file)).path
    return Lora(path, lora.scale, lora.text_scale)
