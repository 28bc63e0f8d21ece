"""The commands that hand models on: pack, lint, card, publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convert.errors import InputError
from convert.units import size
from sdxl_coreml.making import Json, Quiet, fetch, out_option
from sdxl_coreml.terminal import Terminal

if TYPE_CHECKING:
    from convert.source.download import Snapshot
    from release.card.source_card import SourceCard
    from release.pack.pack import Packed

Split = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Cut larger archives into parts of this size, such as 2GB."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command in (pack, lint, card, publish):
        app.command()(command)


def pack(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `run` or `convert` left, or one artifact.")
    ],
    out: Annotated[Path, out_option("The release folder.", "RELEASE")],
    source: Annotated[
        str | None, typer.Option("--source", help="The checkpoint, for the card to copy its own.")
    ] = None,
    split: Split = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified", help="Pack artifacts without a passed verification; marked so."
        ),
    ] = False,
    passing_only: Annotated[
        bool, typer.Option("--passing", help="Leave out artifacts that did not pass.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make archives that apps load, with SHA256SUMS, a manifest and a card; resumable.

    Parts of a split archive are joined by `cat NAME.zip.* > NAME.zip`.

    Example: sdxl-coreml pack out --out release --split 2GB
    """
    from release.build import build_release, passing
    from release.pack.archive import parse_size
    from release.pack.pack import find_artifacts, require_packable

    if passing_only and allow_unverified:
        raise InputError("--passing and --allow-unverified contradict each other", hint="Give one.")
    terminal = Terminal(quiet=quiet, as_json=as_json)
    part_size = parse_size(split) if split else None
    artifacts = found_all = find_artifacts(folder)
    if passing_only:
        artifacts = passing(found_all)
        left = [path.name for path in found_all if path not in artifacts]
        if left:
            terminal.say(f"Left out, because they did not pass: {', '.join(left)}")
    require_packable(artifacts, out, allow_unverified=allow_unverified)
    found, licenses = _source_texts(source, out, terminal)
    packed = build_release(
        artifacts,
        out,
        reports=artifacts[0].resolve().parent / "reports",
        source=found,
        licenses=licenses,
        split=part_size,
        allow_unverified=allow_unverified,
        progress=terminal,
    )
    terminal.result(*packed_shown(packed))


def lint(
    path: Annotated[
        Path, typer.Argument(help="A bundle folder, an archive, an artifact or a release folder.")
    ],
    fast: Annotated[
        bool, typer.Option("--fast", help="Compare sizes only, not every file's SHA-256.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Tell what each app would make of it, and what is wrong; exits with 1 if something is.

    Example: sdxl-coreml lint out/release
    """
    from release.lint.lint import lint as look
    from release.lint.text import lint_text

    results = look(path, digests=not fast)
    errors = sum(result.errors for result in results)
    document = {"schema": 1, "errors": errors, "results": [r.to_json() for r in results]}
    Terminal(as_json=as_json).result(document, lint_text(results))
    return 1 if errors else 0


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release folder.")],
    source: Annotated[
        str | None,
        typer.Option("--source", help="The checkpoint, for its own card; else what is there."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="The reports with sample images; reports/ beside DIR.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the model card of a release again: README.md and its images.

    Example: sdxl-coreml card out/release --source animagine
    """
    from release.card.card import compose, write_card
    from release.card.samples import copy_samples
    from release.pack.pack import read_release

    terminal = Terminal(quiet=quiet, as_json=as_json)
    manifest = read_release(folder)
    found = copy_samples(manifest, reports or folder.resolve().parent / "reports", folder)
    copied, _ = _source_texts(source, folder, terminal)
    text = compose(manifest, source=copied, samples=found)
    path = write_card(folder, text)
    terminal.result(
        {"schema": 1, "path": str(path), "images": [s.file for s in found]},
        f"{path}: {len(text.splitlines())} lines, {len(found)} images",
    )


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
    as_json: Json = False,
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


# What several commands share.


def source_card(snapshot: Snapshot) -> SourceCard | None:
    """The card of a checkpoint on this disk, with links that lead to its repo."""
    from release.card.source_card import read_source_card

    return read_source_card(snapshot.path / "README.md", repo=snapshot.repo, commit=snapshot.commit)


def license_texts(snapshot: Snapshot) -> list[Path]:
    """The licence texts of a checkpoint on this disk."""
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
    # Of a repo of many gigabytes only these are needed.
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
