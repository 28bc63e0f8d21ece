"""What several commands do on their way: artifacts made, results shown, places to write to."""

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
    from convert.plan.plan import Plan
    from convert.run.run import Result
    from convert.source.download import Snapshot
    from release.card.source_card import SourceCard
    from release.pack.pack import Packed
    from release.publish.from_run import RunFolder


def url_token() -> str | None:
    """What the server of a URL may want to see: the user's token for it."""
    import os

    return os.environ.get("SDXL_COREML_TOKEN")


def warn_of_others(terminal: Terminal, path: Path, checkpoint: Checkpoint) -> str:
    """Say what else an artifact was made with than what is given; returns that, too."""
    from verify.artifact.made_with import other_ingredients

    unlike = other_ingredients(path, checkpoint)
    if unlike:
        terminal.say(f"warning: {unlike}; give --lora, --vae, --embedding and --ema as it had them")
    return unlike


def make(
    plan: Plan, snapshot: Snapshot, out: Path, terminal: Terminal, jobs: int | None
) -> list[Result]:
    """Convert, with a summary afterwards.

    What nothing says beforehand is measured first, which takes PyTorch: whether the VAE fits in
    float16, and mixed bits without an allocation.
    """
    import time

    from convert.run.run import run

    start = time.monotonic()
    if plan.precision.value is None:
        with deferred_interrupt():
            from verify.reference.vae_precision import settle_vae_precision
        with terminal.working("Measuring the VAE") as say:
            plan = settle_vae_precision(plan, snapshot, out, progress=terminal, say=say)
        terminal.say(str(plan.precision))
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


def _source_texts(
    source: str | None, release: Path, terminal: Terminal
) -> tuple[SourceCard | None, list[Path]]:
    """Card and licences of a checkpoint, or else the card that this release's has copied."""
    from convert.source.download import download, fetch, parse_source
    from release.card.source_card import copied_part, source_texts

    if source is None:
        return copied_part(release / "README.md"), []
    wanted = parse_source(source)
    # Only these are needed of a repo of many gigabytes.
    snapshot = download(wanted, select=_texts) if wanted.kind == "repo" else fetch(wanted, terminal)
    return source_texts(snapshot)


def source_texts_of_run(
    run: RunFolder, source: str | None, terminal: Terminal
) -> tuple[SourceCard | None, Sequence[Path]]:
    """Card and licences of what a run's artifacts were made from.

    Args:
        source: where the checkpoint is. If None, the Hub has them, where it is of the Hub, or else
            a release that was made of the same checkpoint before.
    """
    from convert.source.download import CheckpointSource, download
    from release.card.source_card import copied_part, source_texts
    from release.pack.pack import recorded

    if source is not None:
        return _source_texts(source, run.folder, terminal)
    made_from = run.items[0].manifest["source"]
    if made_from["repo"]:
        wanted = CheckpointSource("repo", made_from["repo"], made_from["commit"])
        return source_texts(download(wanted, select=_texts))
    release = run.folder / "release"
    try:
        is_same = recorded(release)["source"] == made_from
    except InputError:
        is_same = False
    card = copied_part(release / "README.md") if is_same else None
    if card is None:
        terminal.say("The card copies nothing of the source's: --source says where that is.")
    return card, sorted(release.glob("LICENSE*")) if is_same else []


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
