"""Copy the results into the README, between its markers, or check that they are there.

python -m bench.readme            # after `python -m bench` and `python -m bench.sources`
python -m bench.readme --check    # exit code 1 if the README has other figures
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench.table import end, start
from convert.errors import InputError, UserError

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "bench" / "RESULTS.md", ROOT / "README.md"
QUOTED = ("bench", "sources")  # the parts of the results that the README has


def block(file: Path, part: str) -> str:
    """A part of a file from marker to marker, each on a line of its own.

    Raises:
        InputError: it cannot be read, or has not exactly one such part.
    """
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=file) from None
    first, last = map(re.escape, (start(part), end(part)))
    found = re.findall(f"^{first}$.*?^{last}$", text, re.M | re.S)
    if len(found) != 1:
        raise InputError(
            f"has {len(found)} parts between {start(part)} and {end(part)}, not one",
            where=file,
            hint="Each marker stands on a line of its own.",
        )
    return str(found[0])


def replaced(readme: Path, results: Path) -> str:
    """The README's text with these parts of the results; raises InputError as `block` does."""
    parts = [(block(readme, part), block(results, part)) for part in QUOTED]
    text = readme.read_text("utf-8")
    for old, new in parts:
        text = text.replace(old, new)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if they differ")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        text = replaced(options.readme, options.results)
        is_same = text == options.readme.read_text("utf-8")
        if options.check:
            if not is_same:
                print("README differs; run `python -m bench.readme`", file=sys.stderr)
            return 0 if is_same else 1
        if not is_same:
            options.readme.write_text(text, "utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
