"""The command `publish`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convert.errors import InputError
from sdxl_coreml.options import JsonOption, Quiet, Split
from sdxl_coreml.steps import source_texts_of_run
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from release.publish.publish import Publication

    _Publishing = tuple[Callable[[], Publication], Callable[..., Publication]]


def publish(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RELEASE|DIR", help="A release folder, or what `run` has left."),
    ],
    repo: Annotated[
        str | None, typer.Option("--repo", help="owner/name on the Hub; else the recipe's.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Of DIR: the checkpoint, for the card to copy its own; else what DIR tells of it.",
        ),
    ] = None,
    split: Split = None,
    only_passing: Annotated[
        bool, typer.Option("--passing", help="Of DIR: leave out artifacts that did not pass.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose the commit instead of making it.")
    ] = False,
    allow_license: Annotated[
        bool, typer.Option("--allow-license", help="Publish whatever the licence says.")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Send a release to a repo on the Hub: only what changed, in one commit; resumable.

    Of what `run` has left, each archive is made when its turn comes, sent and dropped: that takes
    no more room than one of them.

    Example: sdxl-coreml publish out --repo owner/coreml-model --dry-run
    """
    from convert.recipe.fields import require_hub_repo

    if repo is not None:
        require_hub_repo(repo)
    from release.pack.archive import parse_size
    from release.pack.pack import is_release
    from release.publish.text import publication_document, publication_text

    terminal = Terminal(quiet=quiet, as_json=as_json)
    part_size = parse_size(split) if split else None
    if is_release(folder):
        of_run = {"--source": source, "--split": split, "--passing": only_passing}
        if given := [option for option, value in of_run.items() if value]:
            raise InputError(
                f"{given[0]} is of a run's folder, and this is a release",
                where=folder,
                hint="Give the folder that the release was made of, or `pack` it again so.",
            )
        to_publish = _of_release(folder, repo, allow_license)
    else:
        to_publish = _of_run(folder, repo, source, part_size, only_passing, allow_license, terminal)
    plan, send = to_publish
    if dry_run:
        found = plan()
    else:
        found = send(pull_request=pull_request, allow_license=allow_license, progress=terminal)
    terminal.result(
        publication_document(found, dry_run=dry_run),
        publication_text(found, dry_run=dry_run, pull_request=pull_request),
    )


def _of_release(folder: Path, repo: str | None, allow_license: bool) -> _Publishing:
    """How a release folder is looked at, and how it is sent."""
    from release.publish.publish import plan_publication, publish, require_license
    from release.publish.text import wanted_repo

    name = wanted_repo(folder, repo)
    if not allow_license:
        require_license(folder)
    return partial(plan_publication, folder, name), partial(publish, folder, name)


def _of_run(
    folder: Path,
    repo: str | None,
    source: str | None,
    split: int | None,
    only_passing: bool,
    allow_license: bool,
    terminal: Terminal,
) -> _Publishing:
    """The same of a run's folder."""
    from release.publish.from_run import plan_run, publish_run, read_run, require_license
    from release.publish.text import wanted_repo

    run = read_run(folder, split=split, only_passing=only_passing)
    name = wanted_repo(folder, repo, run.recipe)
    if run.left:
        why = "they did not pass or are of another recipe"
        terminal.say(f"Left out, because {why}: {', '.join(run.left)}")
    card, licenses = source_texts_of_run(run, source, terminal)
    run = replace(run, source=card, licenses=licenses)
    if not allow_license:
        require_license(run)
    return partial(plan_run, run, name), partial(publish_run, run, name)
