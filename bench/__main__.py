"""Measure conversions beside `cp`, and beside Apple's converter, in one run.

python -m bench                      # all but the peer: 25 GB of disk, half an hour
python -m bench --peer               # with Apple's converter: 21 GiB of memory
python -m bench --quick              # the toy checkpoint: does the harness work?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.machine import describe
from bench.measure import INTERVAL
from bench.run import run_tasks
from bench.table import kept, markdown
from bench.tasks import choose, make_setup, make_tasks
from convert.errors import UserError

RESULTS = Path(__file__).parent / "RESULTS.md"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write it; exit code 1 if a command failed."""
    options = parse(arguments)
    # A part of the table, or a toy's, must not replace the one that the README quotes.
    is_whole = not (options.quick or options.only)
    results = options.results or (RESULTS if is_whole else options.folder / "RESULTS.md")
    try:
        setup = make_setup(options.folder, quick=options.quick, checkpoint=options.checkpoint)
        tasks = choose(make_tasks(setup, peer=options.peer), options.only)
        measurements = run_tasks(
            setup,
            tasks,
            repeat=options.repeat,
            interval=options.interval,
            cold=not options.quick,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        what = "the toy checkpoint" if options.quick else "a full-size SDXL checkpoint"
        text = markdown(measurements, describe(options.folder), source=f"{what}, random weights")
        others = kept(results)
        results.write_text(f"{text}\n{others}" if others else text, "utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(text)
    failed = [row for row in measurements.rows if any(run.exit_code for run in row.runs)]
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", type=Path, default=Path("out/bench"), metavar="DIR", help="works here")
    add("--checkpoint", type=Path, metavar="DIR", help="use this one (diffusers layout)")
    add("--only", action="append", default=[], metavar="NAME", help="only this task; may repeat")
    add("--quick", action="store_true", help="the toy checkpoint, page cache left alone")
    add("--repeat", type=positive, default=1, metavar="N", help="rounds; the table shows medians")
    add("--peer", action="store_true", help="Apple's converter as well")
    add("--interval", type=float, default=INTERVAL, metavar="S", help="between memory samples")
    add("--results", type=Path, metavar="FILE", help="bench/RESULTS.md, or in --folder for a part")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number of at least 1, for an option; argparse tells the user of another."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
