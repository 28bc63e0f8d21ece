"""The command `publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdxl_coreml.options import JsonOption, Quiet
from sdxl_coreml.terminal import Terminal


def publish(
    folder: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.")],
    repo: Annotated[
        str | None, typer.Option("--repo", help="owner/name on the Hub; else the recipe's.")
    ] = None,
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

    Example: sdxl-coreml publish out/release --repo owner/coreml-model --dry-run
    """
    from convert.recipe.fields import require_hub_repo

    if repo is not None:
        require_hub_repo(repo)
    from release.publish.publish import plan_publication, require_license
    from release.publish.publish import publish as send
    from release.publish.text import publication_document, publication_text, wanted_repo

    terminal = Terminal(quiet=quiet, as_json=as_json)
    name = wanted_repo(folder, repo)
    if dry_run:
        if not allow_license:
            require_license(folder)
        found = plan_publication(folder, name)
    else:
        found = send(
            folder,
            name,
            pull_request=pull_request,
            allow_license=allow_license,
            progress=terminal,
        )
    terminal.result(
        publication_document(found, dry_run=dry_run),
        publication_text(found, dry_run=dry_run, pull_request=pull_request),
    )
