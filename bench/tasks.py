"""What is measured: each task a command with a folder to write to, all in one table."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.full_size import SDXL
from convert.errors import InputError
from convert.toy import write_toy
from convert.toy.random_checkpoint import WORDS, write_checkpoint

LIMIT = 3 << 30  # bytes: the control group that the limited tasks run in
VARIANTS = ("original", "split_einsum")
WIDTHS = ("8", "6", "4")
PALETTIZER_BITS = "6"
# SDXL's usual sizes, and for the toy two that it can make.
RESOLUTIONS = (
    "1024x1024", "1152x896", "896x1152", "1216x832", "832x1216",
    "1344x768", "768x1344", "1536x640", "640x1536",
)  # fmt: skip
TOY_RESOLUTIONS = ("128x128", "128x192")
PEER = "python_coreml_stable_diffusion"
COMMAND = (sys.executable, "-m", "sdxl_coreml")


@dataclass(frozen=True)
class Setup:
    """What the tasks work on."""

    checkpoint: Path
    folder: Path  # what they write goes here
    resolutions: Sequence[str]
    others: Sequence[Path] = ()  # that tasks read beside the checkpoint

    @property
    def unet_files(self) -> list[Path]:
        """The UNet's weights.

        Raises:
            InputError: there are none.
        """
        files = sorted((self.checkpoint / "unet").glob("*.safetensors"))
        if not files:
            raise InputError("has no unet/*.safetensors", where=self.checkpoint)
        return files

    @property
    def files(self) -> list[Path]:
        """All files that tasks read."""
        own = sorted(p for p in self.checkpoint.rglob("*") if p.is_file())
        return [*own, *self.others]

    @property
    def recipe_text(self) -> str:
        """The recipe of the matrix, for `plan`; quoted as TOML and JSON both do."""
        quote = '"{}"'.format
        return "\n".join(
            [
                'name = "bench"',
                f"source = {{ path = {quote(self.checkpoint.name)} }}",
                "[matrix]",
                f"attention = [{', '.join(map(quote, VARIANTS))}]",
                f"resolution = [{', '.join(map(quote, self.resolutions))}]",
                'bits = ["16"]',
                "",
            ]
        )


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str  # for --only
    title: str  # in Markdown
    command: tuple[str, ...]
    out: Path  # removed before
    limit: int | None = None  # bytes
    after: str | None = None  # goes on in the folder that this task has left
    is_peer: bool = False
    rounds: int | None = None  # how many of the last ones it is run in; all of them if None


def make_setup(folder: Path, *, quick: bool, checkpoint: Path | None = None) -> Setup:
    """The checkpoint, made if it is not there yet; it appears complete or not at all.

    Raises:
        InputError: it cannot be written, or `checkpoint` is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = folder / ("toy" if quick else "checkpoint")
        if not checkpoint.exists():
            if quick:
                write_toy(checkpoint)
            else:
                write_checkpoint(checkpoint, SDXL, words=WORDS.split())
    setup = Setup(checkpoint, folder, TOY_RESOLUTIONS if quick else RESOLUTIONS)
    assert setup.unet_files
    return setup


def make_tasks(setup: Setup, *, peer: bool = False) -> list[Task]:
    """All tasks, in their order.

    Args:
        peer: Apple's converter as well.

    Raises:
        InputError: it is not installed.
    """
    copy, matrix = setup.folder / "copy", setup.folder / "matrix"
    compressed = setup.folder / "compressed"
    unet = setup.folder / "unet"
    weights = [str(file) for file in setup.unet_files]

    def convert(out: Path, attention: Sequence[str], sizes: Sequence[str], *more: str) -> Task:
        command = [*COMMAND, "convert", str(setup.checkpoint), "--out", str(out), "--quiet"]
        command += [option for a in attention for option in ("--attention", a)]
        command += [option for s in sizes for option in ("--resolution", s)]
        return Task("", "", (*command, *more), out)

    def named(task: Task, name: str, title: str, **more: object) -> Task:
        return Task(**{**vars(task), "name": name, "title": title, **more})

    first = setup.resolutions[:1]
    # A copy that shares blocks (XFS, Btrfs, APFS) would write nothing, and limit nothing.
    copying = ("sh", "-c", 'mkdir "$0" && exec cp --reflink=never "$@" "$0"', str(copy), *weights)
    tasks = [Task("cp", "`cp` of the UNet's weights", copying, copy)]
    for attention in VARIANTS:
        one = convert(unet, [attention], first, "--component", "unet")
        title = f"UNet, `{attention}`, {first[0]}"
        tasks.append(named(one, f"unet-{attention}", title))
    for attention in VARIANTS:
        one = convert(unet, [attention], first, "--component", "unet")
        title = f"UNet, `{attention}`, within {LIMIT >> 30} GiB"
        tasks.append(named(one, f"unet-{attention}-limited", title, limit=LIMIT))
    for bits in WIDTHS:
        one = convert(unet, VARIANTS[:1], first, "--component", "unet", "--bits", bits)
        title = f"UNet, `{VARIANTS[0]}`, {first[0]}, {bits} bits"
        tasks.append(named(one, f"unet-{bits}", title))
    every = convert(matrix, VARIANTS, setup.resolutions)
    count = f"{len(VARIANTS)} variants × {len(setup.resolutions)} resolutions"
    tasks.append(named(every, "matrix", f"all components, {count}"))
    tasks.append(named(every, "matrix-again", "the same again, all there", after="matrix"))
    widths = ("16", *WIDTHS)
    options = [option for bits in widths for option in ("--bits", bits)]
    every = convert(compressed, VARIANTS, setup.resolutions, "--component", "unet", *options)
    title = f"UNet, {count} × {', '.join(widths)} bits"
    tasks.append(named(every, "compressed-matrix", title))
    if peer:
        tasks += _palettizer(setup, convert)
        _require_peer()
        one = convert(unet, VARIANTS[:1], first, "--component", "unet", "--engine", "apple")
        title = f"Apple's converter: UNet, `{VARIANTS[0]}`, {first[0]}"
        tasks.append(named(one, "peer", title, is_peer=True))
    return tasks


def _palettizer(setup: Setup, convert: Callable[..., Task]) -> list[Task]:
    """coremltools' palettizer on our 16-bit package, and both results tensor by tensor.

    Raises:
        InputError: what its k-means needs is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "coremltools' palettizer needs scikit-learn",
            hint="Install it: pip install scikit-learn",
        )
    folder, first = setup.folder / "palettizer", setup.resolutions[:1]
    bits = ("--bits", "16", "--bits", PALETTIZER_BITS)
    ours = convert(folder, VARIANTS[:1], first, "--component", "unet", *bits)
    command = (sys.executable, "-m", "bench.palettizer", str(folder), str(setup.checkpoint))
    title = f"coremltools' palettizer alone: UNet to {PALETTIZER_BITS} bits"
    return [
        replace(ours, name="unet-16-and-6", title=f"UNet, 16 and {PALETTIZER_BITS} bits"),
        Task("palettizer", title, (*command, "palettize"), folder, after="unet-16-and-6"),
        Task("palettes", "both compared", (*command, "compare"), folder, after="palettizer"),
    ]


def _require_peer() -> None:
    if importlib.util.find_spec(PEER) is None:
        raise InputError(
            "Apple's converter is not installed",
            where=PEER,
            hint="`sdxl-coreml convert --engine apple` says how to install it.",
        )


def choose(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """The tasks named in `only` and those they go on from; all if it is empty.

    Raises:
        InputError: an unknown name.
    """
    names = [task.name for task in tasks]
    for name in only:
        if name not in names:
            raise InputError(f"unknown task `{name}`", hint=f"Tasks: {', '.join(names)}.")
    wanted = set(only)
    for task in reversed(tasks):  # what a task goes on from comes before it
        if task.name in wanted and task.after is not None:
            wanted.add(task.after)
    return [t for t in tasks if not only or t.name in wanted]
