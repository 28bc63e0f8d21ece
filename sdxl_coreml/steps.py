"""What several commands do on their way: recipe → source → checkpoint → plan → artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import InputError
from convert.process.interrupts import deferred_interrupt
from convert.units import size
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from convert.checkpoint.checkpoint import Checkpoint
    from convert.lora.apply import Lora
    from convert.plan.plan import Plan
    from convert.recipe.recipe import Recipe
    from convert.run.run import Result
    from convert.source.download import CheckpointSource, Snapshot
    from release.card.source_card import SourceCard
    from release.pack.pack import Packed


def fetch(source: Any, terminal: Terminal, out: Path | None = None) -> Snapshot:
    """A checkpoint on this disk, with the progress of its download."""
    import os

    from convert.source.download import download

    stage, advance, seen = None, None, 0

    def report(file: str, done: int, total: int) -> None:
        nonlocal stage, advance, seen
        if advance is None:
            stage = terminal.stage(f"Downloading {source.location}", total, "B")
            advance = stage.__enter__()
        advance(done - seen)
        seen = done

    token = os.environ.get("SDXL_COREML_TOKEN") if source.url else None
    try:
        return download(source, out, progress=report, token=token)
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


def wanted_source(recipe: Recipe, source: str | None) -> CheckpointSource:
    """The recipe's source, or `source` instead."""
    from dataclasses import replace

    from convert.source.download import CheckpointSource, parse_source

    given = recipe.source
    if source is not None:
        return parse_source(source)
    if given.repo:
        return CheckpointSource("repo", given.repo, given.revision, given.file, given.sha256)
    return replace(parse_source(given.url or str(given.path)), sha256=given.sha256)


def wanted_base(recipe: Recipe | None, base: str | None) -> CheckpointSource | None:
    """Where parts come from that the source lacks: `base`, or what the recipe says of it."""
    from convert.source.download import parse_source

    text = base or (recipe.source.base if recipe else None)
    return parse_source(text) if text else None


def with_base(snapshot: Snapshot, base: CheckpointSource | None, terminal: Terminal) -> Snapshot:
    """The snapshot, and the one that supplies what it lacks."""
    from dataclasses import replace

    return snapshot if base is None else replace(snapshot, base=fetch(base, terminal))


def wanted_loras(
    recipe: Recipe | None, given: Sequence[str] | None, terminal: Terminal
) -> list[Lora]:
    """The LoRAs to merge: of the recipe, or else those that were `given` as options."""
    from convert.lora.apply import Lora
    from convert.recipe.options import lora_values
    from convert.recipe.sections import LoraSource
    from convert.source.download import CheckpointSource

    found = list(recipe.source.loras) if recipe else []
    found = found or [LoraSource.model_validate(lora_values(text)) for text in given or ()]
    loras = []
    for lora in found:
        path = Path(lora.path or "")
        if lora.repo is not None:
            wanted = CheckpointSource("repo", lora.repo, lora.revision, lora.file, None)
            path = fetch(wanted, terminal).path
        loras.append(Lora(path, lora.scale, lora.text_scale))
    return loras


def open_snapshot(snapshot: Snapshot, loras: Sequence[Lora] = ()) -> Checkpoint:
    """The checkpoint, named after its repo, folder or file, with what its base supplies.

    Args:
        loras: what is merged into it.
    """
    from convert.lora.apply import apply
    from convert.opening.door import open_checkpoint

    name = snapshot.repo.rpartition("/")[2] if snapshot.repo else None
    base = open_snapshot(snapshot.base) if snapshot.base else None
    checkpoint = open_checkpoint(snapshot.path, name=name, base=base)
    return apply(checkpoint, loras)[0] if loras else checkpoint


def make(
    plan: Plan,
    snapshot: Snapshot,
    out: Path,
    terminal: Terminal,
    jobs: int | None,
) -> list[Result]:
    """Convert, with the plan shown before and a summary after.

    Mixed bits without an allocation are measured first, which takes PyTorch.
    """
    import time

    from convert.plan.text import plan_table
    from convert.run.run import require_ours, run

    require_ours(out, plan)
    terminal.say(plan_table(plan))
    start = time.monotonic()
    if plan.unmeasured:
        with deferred_interrupt():
            from verify.reference.calibration import calibrate
        with terminal.working("Calibrating") as say:
            plan = calibrate(plan, snapshot, out, progress=terminal, say=say)
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


def write_report(file: Path, text: str | bytes) -> None:
    """Write a report where the user wants it; raises InputError if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=file) from None


def source_card(snapshot: Snapshot) -> SourceCard | None:
    """The card of a checkpoint on this disk, with links that lead to its repo."""
    from release.card.source_card import read_source_card

    if snapshot.path.is_file() and snapshot.repo is None:
        return None  # a card beside it may be of another file
    folder = snapshot.path.parent if snapshot.path.is_file() else snapshot.path
    return read_source_card(folder / "README.md", repo=snapshot.repo, commit=snapshot.commit)


def license_texts(snapshot: Snapshot) -> list[Path]:
    """The licence texts of a checkpoint on this disk."""
    if snapshot.path.is_file():
        return []
    return sorted(path for path in snapshot.path.glob("LICENSE*") if path.is_file())


def _source_texts(
    source: str | None, release: Path, terminal: Terminal
) -> tuple[SourceCard | None, list[Path]]:
    """Card and licences of a checkpoint, or else the card that this release's has copied."""
    from convert.source.download import download, parse_source
    from release.card.source_card import copied_part

    if source is None:
        return copied_part(release / "README.md"), []
    wanted = parse_source(source)
    # Only these are needed of a repo of many gigabytes.
    snapshot = download(wanted, select=_texts) if wanted.kind == "repo" else fetch(wanted, terminal)
    return source_card(snapshot), license_texts(snapshot)


def _texts(names: Sequence[str], _read: object) -> list[str]:
    return [name for name in names if name == "README.md" or name.startswith("LICENSE")]


def packed_shown(packed: Packed) -> tuple[dict[str, Any], str]:
    """What was packed, as JSON and for people."""
    archives = packed.manifest["archives"]
    document = {
        "schema": 1,
        "path": str(packed.path),
        "archives": [
            {
                "archive": a["archive"],
                "size": a["size"],
                "sha256": a["sha256"],
                "files": [f["name"] for f in a["files"]],
                "verdict": a["manifest"]["verdict"],
                "fresh": a["manifest"]["artifact"] in packed.fresh,
            }
            for a in archives
        ],
    }
    total = sum(a["size"] for a in archives)
    kept = len(archives) - len(packed.fresh)
    text = f"{packed.path}: {len(archives)} archives, {size(total)}"
    return document, text + (f" ({kept} were finished already)" if kept else "")


def require_writable(*files: Path | None) -> None:
    """Raise InputError, before any work is done, for a file that could not be written after it."""
    import os

    for file in files:
        if file is None or file == Path("-"):
            continue
        if file.is_dir():
            raise InputError("is a folder; a file is expected", where=file)
        place = next(folder for folder in file.absolute().parents if folder.exists())
        if not place.is_dir():
            raise InputError("is a file; a folder is expected", where=place)
        if not os.access(file if file.exists() else place, os.W_OK):
            raise InputError("cannot be written: Permission denied", where=file)


def require_new_folder(folder: Path) -> None:
    """Raise InputError, before any work is done, for a folder that holds something already."""
    from convert.files.appearing import require_new

    if folder.is_dir():
        require_new(folder)
    require_writable(folder / "of it")
