"""Kill a run with SIGKILL at random moments, run it again, compare with an undisturbed run.

    python -m bench.kill CHECKPOINT COUNT [--folder DIR] [--seed N] [--recipe FILE] [--interrupt]
        [--row N] [--within SECONDS]

Every time starts from an empty folder. With `--recipe` the command is `run`, verification and
release included; without it `convert`, for checkpoints whose verification takes hours. Exits with
1 if a file differs from the undisturbed run's by a byte, or anything stray is left outside
`.cache`. With `--interrupt` it is Ctrl-C, from 0.02 s on, and has to end in exit code 130 and one
line as well. With `--row` it is killed so often in a row, each time at another moment, before it
may end. Moments are anywhere in the time of the undisturbed run, or within so many seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

OUT = "out"
SETTINGS = {"attention": ["original", "split_einsum"], "resolution": ["512x512", "512x768"]}


def main() -> int:
    """Do what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--folder", type=Path, default=Path("out/kill"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", help="a recipe's file or name")
    parser.add_argument("--interrupt", action="store_true")
    parser.add_argument("--within", type=float, help="seconds; the undisturbed run's by default")
    parser.add_argument("--row", type=int, default=1, help="kills before a run may end")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    moments = random.Random(options.seed)
    print(f"seed {options.seed}")
    # A job in the background ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    if run(options).wait():
        sys.exit("the undisturbed run failed")
    whole = time.monotonic() - start
    last = min(whole, options.within or whole)
    expected = contents(options.folder / OUT)
    shutil.rmtree(options.folder / OUT)
    print(f"undisturbed: {whole:.1f} s, {len(expected)} files")
    wrong = 0
    for number in range(options.count):
        endings = []
        for _ in range(options.row):
            moment = moments.uniform(0.02 if options.interrupt else 0, last)
            process = run(options)
            time.sleep(moment)
            ending = end(process, signal.SIGINT if options.interrupt else signal.SIGKILL)
            endings.append(f"{ending} after {moment:.2f} s")
            wrong += ending not in ENDINGS
        start = time.monotonic()
        code = run(options).wait()
        same = contents(options.folder / OUT) == expected
        wrong += code != 0 or not same
        verdict = "same bytes" if same else "DIFFERENT"
        again = time.monotonic() - start
        print(f"{number + 1}: {', '.join(endings)}, again {again:.1f} s, {verdict}", flush=True)
        shutil.rmtree(options.folder / OUT)
    print(f"{options.count} times {options.row}, {wrong} wrong")
    return 1 if wrong else 0


def run(options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the command, in a process group as a terminal's, always into the same folder."""
    command = [sys.executable, "-m", "sdxl_coreml"]
    if options.recipe:
        command += ["run", options.recipe, "--source", str(options.checkpoint)]
    else:
        command += ["convert", str(options.checkpoint), "--component", "unet"]
        command += [f"--{key}={value}" for key, values in SETTINGS.items() for value in values]
    command += ["--out", str(options.folder / OUT), "--quiet", "--jobs", "2"]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal, to workers too if it is Ctrl-C; returns what became of the process."""
    if process.poll() is None:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    said = process.communicate()[1]
    if process.returncode == 0 and not said:
        return "finished"
    if process.returncode == -signal.SIGKILL == -number:
        return "killed"
    if (
        process.returncode == 130
        and said.startswith("error: interrupted")
        and said.count("\n") == 1
    ):
        return "interrupted"
    return f"exit code {process.returncode}, {said!r},"


ENDINGS = {"killed", "interrupted", "finished"}


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file outside `.cache`, each inode read once."""
    digests: dict[int, str] = {}
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] == ".cache":
            continue
        inode = path.stat().st_ino
        if inode not in digests:
            with path.open("rb") as file:
                digests[inode] = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(name)] = digests[inode]
    return found


if __name__ == "__main__":
    sys.exit(main())
