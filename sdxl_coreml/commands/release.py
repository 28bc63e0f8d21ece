"""The commands that make a release: pack, lint, card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convert.errors import InputError
from sdxl_coreml.options import JsonOption, Quiet, Split, out_option
from sdxl_coreml.steps import _source_texts, packed_shown
from sdxl_coreml.terminal import Terminal


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
    as_json: JsonOption = False,
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
    as_json: JsonOption = False,
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
    as_json: JsonOption = False,
) -> None:
    """Write the model card of a release again: README.md and its images.

    Example: sdxl-coreml card out/release --source animagine
    """
    from release.card.card import compose, write_card
    from release.card.samples import copy_samples, saved_reports
    from release.pack.pack import read_release

    terminal = Terminal(quiet=quiet, as_json=as_json)
    manifest = read_release(folder)
    place = reports or folder.resolve().parent / "reports"
    found = copy_samples(manifest, saved_reports(manifest, place), place, folder)
    copied, _ = _source_texts(source, folder, terminal)
    text = compose(manifest, source=copied, samples=found)
    path = write_card(folder, text)
    terminal.result(
        {"schema": 1, "path": str(path), "images": [s.file for s in found]},
        f"{path}: {len(text.splitlines())} lines, {len(found)} images",
    )
