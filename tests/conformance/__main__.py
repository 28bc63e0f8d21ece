"""coremltools' own tests of MIL's operations against our evaluator and compiler.

python -m tests.conformance                     # 7,000 of them: ten minutes of one core
python -m tests.conformance --cases 100000      # all
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.conformance import report
from tests.conformance.run import run


def main() -> int:
    """Run the tests and print what they came to; exit code 1 if that is not as it should be."""
    options = parse()
    parts = [(options.cases, options.seed, n, options.processes) for n in range(options.processes)]
    # Processes of their own: coremltools is changed in them, and the tests' variables are read.
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        kept = report.joined(list(pool.map(run, parts)))
    found = report.summary(kept)
    for line in report.lines(found, kept):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(vars(kept), indent=1), "utf-8")
    return 0 if found.is_good and report.controls_are_seen(kept) else 1


def parse() -> argparse.Namespace:
    """The command line."""
    text = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=text[0],
        epilog=text[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=7000, help="how many tests (default: 7000)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="how many at once (default: 1)")
    parser.add_argument("--json", type=Path, help="write what became of each test here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
