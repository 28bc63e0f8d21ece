"""The commands `plan` and `run`: everything that a recipe asks for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convert.errors import InputError
from convert.process.interrupts import deferred_interrupt
from sdxl_coreml.options import (
    EffortOption,
    Jobs,
    JsonOption,
    Only,
    Quiet,
    SourceOption,
    Split,
    Strict,
    effort_of,
    out_option,
)
from sdxl_coreml.steps import make, packed_shown, results_shown, url_token
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from convert.recipe.recipe import Recipe
    from convert.source.snapshot import Snapshot
    from release.pack.pack import Packed
    from verify.batch import Outcome


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    source: SourceOption = None,
    only: Only = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `run` would make: artifacts, packages and their sizes.

    Example: sdxl-coreml plan recipes/toy.toml --source toy
    """
    from convert.plan.prepare import prepare
    from convert.plan.text import plan_document, plan_table
    from convert.recipe.builtin import read_recipe
    from release.pack.room import room_for
    from verify.proof.estimate import efforts_shown, verify_seconds

    terminal = Terminal(as_json=as_json)
    parsed = read_recipe(recipe)
    plan = prepare(parsed, source, terminal, only=only, looking=True, token=url_token()).plan
    document = plan_document(plan)
    seconds = verify_seconds(plan)
    table = f"{plan_table(plan, document)}\n{efforts_shown(plan, seconds)}"
    room = room_for(plan, Path("out"))
    terminal.result(document | {"verify": seconds}, f"{table}\n{room}")


def run(
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
    as_json: JsonOption = False,
    strict: Strict = False,
    effort: EffortOption = None,
) -> int:
    """Do everything a recipe asks for: download, convert, verify, release; cached and resumable.

    Example: sdxl-coreml run toy --source toy --out out
    """
    from convert.plan.prepare import prepare
    from convert.plan.text import plan_document, plan_table
    from convert.recipe.builtin import read_recipe
    from convert.run.run import require_ours
    from release.pack.archive import parse_size
    from release.pack.room import room_for
    from verify.proof.estimate import efforts_shown, verify_seconds

    if release_passing and not release:
        raise InputError("--release-passing and --no-release contradict each other")
    part_size = parse_size(split) if split else None
    terminal = Terminal(quiet=quiet, as_json=as_json)
    parsed = read_recipe(recipe)
    if not dry_run:
        require_ours(out)
    prepared = prepare(parsed, source, terminal, only=only, looking=dry_run, token=url_token())
    plan = prepared.plan
    if not dry_run:
        require_ours(out, plan)
    room = room_for(plan, out)
    seconds = verify_seconds(plan)
    document = plan_document(plan) | {"verify": seconds}
    table = f"{plan_table(plan, document)}\n{efforts_shown(plan, seconds, effort_of(effort))}"
    if release:
        table += f"\n{room}"
    if dry_run:
        terminal.result(document, table)
        return 0

    def repeat(artifact: str) -> str:
        given = ["--source", prepared.source.location, "--recipe", recipe]
        words = ["sdxl-coreml", "verify", str(out / artifact), *given, "--html", "report.html"]
        return shlex.join(words)

    terminal.say(table)
    made = make(plan, prepared.snapshot, out, terminal, jobs)
    document |= results_shown(made)[0]
    with deferred_interrupt():
        from release.build import releasable
        from verify.batch import verify_all
    outcome = verify_all(
        out, made, plan, effort=effort_of(effort), command=repeat, progress=terminal
    )
    code = outcome.exit_code(strict=strict)
    passed = releasable(out, parsed)
    is_wanted = release and (code == 0 or (release_passing and bool(passed)))
    packed = None
    if is_wanted and room.will_do:
        packed = _released(prepared.snapshot, out, passed, part_size, terminal)
    document |= outcome.document
    if packed:
        document["release"] = packed_shown(packed)[0]
    elif is_wanted:
        given = {"--repo": parsed.release.repo or "OWNER/NAME", "--split": split}
        if prepared.source.kind == "path":
            given["--source"] = prepared.source.location
        command = _publishing(out, passed, given)
        document |= {"release": None, "publish": command}
    terminal.result(document, outcome.table())
    if packed:
        terminal.say(packed_shown(packed)[1])
    elif is_wanted:
        for line in _without_room(out, parsed, passed, command):
            terminal.say(line)
    elif code != 0:
        words = ["run", recipe, *_given({"--source": source, "--out": out, "--only": only})]
        again = shlex.join(["sdxl-coreml", *words, "--release-passing"]) if release else None
        for line in _unreleased(out, parsed, passed, outcome, again):
            terminal.say(line)
    terminal.say(f"Report: {out / 'reports' / 'index.html'}")
    return code


def _released(
    snapshot: Snapshot, out: Path, passed: Sequence[Path], split: int | None, terminal: Terminal
) -> Packed | None:
    """The release of the artifacts that passed; None if the disk has no room for its archives."""
    from release.build import build_release
    from release.card.source_card import source_texts
    from release.pack.room import NoRoom

    card, licenses = source_texts(snapshot)
    try:
        return build_release(
            passed,
            out / "release",
            reports=out / "reports",
            source=card,
            licenses=licenses,
            split=split,
            progress=terminal,
        )
    except NoRoom:
        with suppress(OSError):  # it holds an earlier release
            (out / "release").rmdir()
        return None


def _publishing(out: Path, passed: Sequence[Path], options: Mapping[str, object]) -> str:
    """The command that publishes what passed, without room for archives."""
    from release.build import find_artifacts, of_last_run

    is_all = set(of_last_run(find_artifacts(out))) == set(passed)
    words = ["publish", str(out), *_given(options), *([] if is_all else ["--passing"])]
    return shlex.join(["sdxl-coreml", *words])


def _without_room(out: Path, recipe: Recipe, passed: Sequence[Path], command: str) -> Iterator[str]:
    """What a run says that has no room for its archives, in lines.

    Args:
        command: that releases without.
    """
    from release.build import mark_unless_confirmed

    yield "No release was made, because the disk has no room for its archives."
    if left := mark_unless_confirmed(out / "release", recipe, passed, ()):
        yield left
    yield f"This releases the {len(passed)} artifacts, one archive at a time: {command}"


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
