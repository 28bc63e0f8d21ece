"""Measure how long a whole run takes to be converted and proven, and what is paid a second time.

    python -m bench.proof              # 40 GB of disk, an hour, 16 GB of memory
    python -m bench.proof --quick      # the toy checkpoint: does the harness work?

The recipe is that of Animagine XL 3.1: two attentions, nine resolutions, 8 and 6 bits. After it
comes the same again; with one more resolution; and with 16 and 4 bits, in the same folder. Writes
its part of bench/RESULTS.md, and leaves the rest as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import describe
from bench.measure import Measured, measure
from bench.table import end, put, start
from bench.tasks import COMMAND, VARIANTS, make_setup
from convert.errors import CannotExecute, UserError
from convert.process.progress import Say
from convert.units import duration, size

RESULTS = Path(__file__).parents[1] / "RESULTS.md"
PART = "proof"
MORE, MORE_OF_THE_TOY = "960x1088", "192x128"  # the resolution that is added
FEW, ALL = ("8", "6"), ("16", "8", "6", "4")
EFFORT = "standard"


@dataclass(frozen=True)
class ProofRow:
    """One run of a recipe, into the folder of those before it."""

    title: str
    artifacts: int
    predicted: float | None  # seconds of verifying, by the plan; None where most is known already
    measured: Measured


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the part of the results and write it; returns the exit code."""
    options = parse(arguments)
    results = options.results or (options.folder / "RESULTS.md" if options.quick else RESULTS)
    try:
        setup = make_setup(options.folder, quick=options.quick, checkpoint=options.checkpoint)
        more = MORE_OF_THE_TOY if options.quick else MORE
        rows = run(
            setup.checkpoint,
            setup.folder / "proof",
            [*setup.resolutions],
            more,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        what = "the toy checkpoint" if options.quick else "a full-size SDXL checkpoint"
        text = section(rows, describe(options.folder), f"{what}, random weights")
        put(PART, text, results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", type=Path, default=Path("out/bench"), metavar="DIR", help="works here")
    add("--checkpoint", type=Path, metavar="DIR", help="use this one (diffusers layout)")
    add("--quick", action="store_true", help="the toy checkpoint")
    add("--results", type=Path, metavar="FILE", help="bench/RESULTS.md, or in --folder if quick")
    return parser.parse_args(arguments)


def run(
    checkpoint: Path, folder: Path, resolutions: Sequence[str], more: str, *, say: Say
) -> list[ProofRow]:
    """Run the recipe four times, each time with more in it or nothing new; removes `folder`.

    Raises:
        CannotExecute: a command fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps = (
        ("from nothing", resolutions, FEW),
        ("again", resolutions, FEW),
        (f"and {more}", [*resolutions, more], FEW),
        (f"and {' and '.join(b for b in ALL if b not in FEW)} bits", resolutions, ALL),
    )
    rows = []
    try:
        for number, (title, sizes, bits) in enumerate(steps):
            recipe = folder / f"{number}.toml"
            recipe.write_text(_recipe(sizes, bits), "utf-8")
            given = [str(recipe), "--source", str(checkpoint)]
            planned = _measured([*COMMAND, "plan", *given, "--json"])
            predicted = json.loads(planned.stdout)["verify"][EFFORT] if number == 0 else None
            out = ["--out", str(folder / "out"), "--no-release", "--effort", EFFORT, "--json"]
            measured = _measured([*COMMAND, "run", *given, *out])
            count = len(json.loads(measured.stdout)["results"])
            rows.append(ProofRow(title, count, predicted, measured))
            say(f"{title}: {count} artifacts, {measured.wall:.0f} s")
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _recipe(resolutions: Sequence[str], bits: Sequence[str]) -> str:
    """A recipe; TOML quotes lists of words as JSON does."""
    return "\n".join(
        [
            'name = "bench"',
            'source.path = "checkpoint"',
            "[matrix]",
            f"attention = {json.dumps(VARIANTS)}",
            f"resolution = {json.dumps([*resolutions])}",
            f"bits = {json.dumps([*bits])}",
            "",
        ]
    )


def _measured(command: Sequence[str]) -> Measured:
    measured = measure(command)
    if measured.failure:
        raise CannotExecute(measured.failure, where=" ".join(command[1:4]))
    return measured


def section(rows: Sequence[ProofRow], machine: Sequence[str], source: str) -> str:
    """The part of RESULTS.md, markers included."""
    return "\n".join(
        [
            start(PART),
            "## A whole run, converted and proven",
            "",
            f"Written by `python -m bench.proof`: `run` at effort {EFFORT}, without archives, each "
            "row into the folder of those before it.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in _cells(rows)),
            "",
            f"Measured with {source}, on:",
            "",
            *(f"- {fact}" for fact in machine),
            end(PART),
            "",
        ]
    )


def _cells(rows: Sequence[ProofRow]) -> Iterator[tuple[str, ...]]:
    yield "run", "artifacts", "time", "plan: verifying", "CPU", "peak memory: anonymous"
    yield "---", "---:", "---:", "---:", "---:", "---:"
    for row in rows:
        memory = row.measured.peak_memory
        yield (
            row.title,
            str(row.artifacts),
            duration(row.measured.wall),
            "–" if row.predicted is None else duration(row.predicted),
            duration(row.measured.cpu),
            size(memory.anonymous + memory.shared),
        )
