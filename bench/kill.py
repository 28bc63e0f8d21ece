"""Kill a run with SIGKILL at random moments, run it again, compare with an undisturbed run.

    python -m bench.kill CHECKPOINT COUNT [--folder DIR] [--seed N] [--verify]

Every time starts from an empty folder. With `--verify` the command is `run`, verification
included; without it `convert`, for checkpoints whose verification takes hours. Exits with 1 if a
package differs from the undisturbed run's by a byte, or anything stray is left outside `.cache`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {"attention": ["original", "split_einsum"], "resolution": ["512x512", "512x768"]}


def main() -> int:
    """Do what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--folder", type=Path, default=Path("out/kill"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    moments = random.Random(options.seed)
    print(f"seed {options.seed}")
    start = time.monotonic()
    run(options, "undisturbed").wait()
    whole = time.monotonic() - start
    expected = contents(options.folder / "undisturbed")
    print(f"undisturbed: {whole:.1f} s, {len(expected)} files")
    wrong = 0
    for number in range(options.count):
        moment = moments.uniform(0, whole)
        process = run(options, "killed")
        time.sleep(moment)
        process.kill()
        process.wait()
        start = time.monotonic()
        code = run(options, "killed").wait()
        same = contents(options.folder / "killed") == expected
        wrong += code != 0 or not same
        verdict = "same bytes" if same else "DIFFERENT"
        again = time.monotonic() - start
        print(f"{number + 1}: killed after {moment:.1f} s, again {again:.1f} s, {verdict}")
        shutil.rmtree(options.folder / "killed")
    print(f"{options.count - wrong} of {options.count} as if undisturbed")
    return 1 if wrong else 0


def run(options: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    """Start the command into the folder `name`."""
    tool = [sys.executable, "-m", "sdxl_coreml"]
    out = ["--out", str(options.folder / name), "--quiet"]
    if options.verify:
        recipe = options.folder / "recipe.toml"
        matrix = "\n".join(f"{key} = {value!r}" for key, value in SETTINGS.items())
        recipe.write_text(
            'name = "killed"\n[source]\npath = "given by --source"\n[matrix]\n'
            + matrix.replace("512", "64").replace("768", "96").replace("'", '"')
        )
        command = ["run", str(recipe), "--source", str(options.checkpoint)]
    else:
        command = ["convert", str(options.checkpoint), "--component", "unet"]
        command += [f"--{key}={value}" for key, values in SETTINGS.items() for value in values]
    return subprocess.Popen([*tool, *command, *out], stdout=subprocess.DEVNULL)


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
