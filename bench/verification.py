"""Measure one timestep of the UNet: our evaluator in both modes beside diffusers in float32.

Then `verify` itself, at a small size with the same weights and for one timestep at the true one.

    python -m bench.verification              # 20 GB of disk, half an hour, 16 GB of memory
    python -m bench.verification --quick      # the toy checkpoint: does the harness work?

Writes its part of bench/RESULTS.md, and leaves the rest as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.measure import Measured, measure
from bench.table import end, put, start
from bench.tasks import COMMAND, VARIANTS, make_setup
from convert.errors import CannotExecute, UserError
from convert.process.progress import Say
from convert.units import size

RESULTS = Path(__file__).parent / "RESULTS.md"
PART = "verification"
MODES = ("fp32", "typed")
COLUMNS = (
    "one timestep, batch 2", "seconds", "× diffusers", "until exit", "× diffusers", "CPU",
    "peak memory: anonymous", "with mapped files", "SNR against diffusers",
)  # fmt: skip
CHECKS = (["--probe"], ["--timestep", "999"])  # options of `verify`


@dataclass(frozen=True)
class Row:
    """One process that has run one timestep."""

    title: str
    measured: Measured
    found: dict[str, Any]  # what it printed


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the part of the results and write it; returns the exit code."""
    options = parse(arguments)
    results = options.results or (options.folder / "RESULTS.md" if options.quick else RESULTS)
    try:
        setup = make_setup(options.folder, quick=options.quick, checkpoint=options.checkpoint)
        resolution = setup.resolutions[0]
        rows, checks = run(
            setup.checkpoint,
            setup.folder / "verification",
            resolution,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        what = "the toy checkpoint" if options.quick else "a full-size SDXL checkpoint"
        text = section(
            rows, checks, describe(options.folder), f"{what}, random weights, {resolution}"
        )
        put(PART, text, results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.verification", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", type=Path, default=Path("out/bench"), metavar="DIR", help="works here")
    add("--checkpoint", type=Path, metavar="DIR", help="use this one (diffusers layout)")
    add("--quick", action="store_true", help="the toy checkpoint")
    add("--results", type=Path, metavar="FILE", help="bench/RESULTS.md, or in --folder if quick")
    return parser.parse_args(arguments)


def run(
    checkpoint: Path, folder: Path, resolution: str, *, say: Say
) -> tuple[list[Row], dict[str, Measured]]:
    """Convert both variants, then run diffusers, the evaluator and `verify`; removes `folder`.

    Returns:
        The timesteps, and `verify` by what was asked of it.

    Raises:
        CannotExecute: a command fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for variant in VARIANTS:
            settings = ["--component", "unet", "--resolution", resolution, "--attention", variant]
            out = str(folder / variant)
            _measured([*COMMAND, "convert", str(checkpoint), "--out", out, "--quiet", *settings])
            say(f"converted: {variant}")
        noise = folder / "noise.npy"
        rows = [_row("diffusers, float32", "diffusers", checkpoint, noise, say)]
        for variant in VARIANTS:
            for mode in MODES:
                title = f"evaluator, `{variant}`, `{mode}`"
                rows.append(_row(title, mode, folder / variant, noise, say))
        checks = {}
        artifact = next((folder / VARIANTS[0]).glob("*/Unet.mlpackage")).parent
        for options in CHECKS:
            what = [*COMMAND, "verify", str(artifact), "--component", "unet", *options]
            title = f"`verify {' '.join(options)}`, `{VARIANTS[0]}`"
            checks[title] = _measured([*what, "--source", str(checkpoint), "--quiet"])
            say(f"{title}: {checks[title].wall:.1f} s")
        return rows, checks
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(title: str, how: str, source: Path, noise: Path, say: Say) -> Row:
    measured = _measured([sys.executable, "-m", "bench.timestep", how, str(source), str(noise)])
    found = json.loads(measured.stdout.splitlines()[-1])
    say(f"{title}: {found['timestep']:.1f} s")
    return Row(title, measured, found)


def _measured(command: Sequence[str]) -> Measured:
    measured = measure(command)
    if measured.failure:
        raise CannotExecute(measured.failure, where=" ".join(command[1:4]))
    return measured


def section(
    rows: Sequence[Row], checks: Mapping[str, Measured], machine: Sequence[str], source: str
) -> str:
    """The part of RESULTS.md, markers included; ratios are to the first row, which is diffusers."""
    first = rows[0]
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    for row in rows:
        memory = row.measured.peak_memory
        snr = row.found.get("snr_db")
        lines.append(
            (
                row.title,
                f"{row.found['timestep']:.1f} s",
                f"{row.found['timestep'] / first.found['timestep']:.2f}",
                f"{row.measured.wall:.1f} s",
                f"{row.measured.wall / first.measured.wall:.2f}",
                f"{row.measured.cpu:.1f} s",
                size(memory.anonymous + memory.shared),
                size(row.measured.peak),
                "–" if snr is None else f"{snr:.1f} dB",
            )
        )
    return "\n".join(
        [
            start(PART),
            "## One timestep, verified",
            "",
            "Written by `python -m bench.verification`: each row a process of its own, one after "
            "the other, on the same inputs.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            f"Measured with {source}, on:",
            "",
            *(f"- {fact}" for fact in machine),
            "",
            "Seconds: of the timestep itself, weights in the page cache. Until exit: with imports, "
            "loading the model and reading its weights once. Mode `fp32` never rounds, `typed` "
            "rounds every result to its declared float16.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in _checked(checks)),
            "",
            "The command as anyone runs it: PyTorch in float32 and float16, then the artifact; the "
            "probe for three timesteps at 256x256.",
            end(PART),
            "",
        ]
    )


def _checked(checks: Mapping[str, Measured]) -> Iterator[tuple[str, ...]]:
    yield "UNet", "seconds", "peak memory: anonymous", "with mapped files"
    yield "---", "---:", "---:", "---:"
    for title, measured in checks.items():
        memory = measured.peak_memory
        anonymous = size(memory.anonymous + memory.shared)
        yield title, f"{measured.wall:.0f} s", anonymous, size(measured.peak)


if __name__ == "__main__":
    sys.exit(main())
