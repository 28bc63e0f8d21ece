"""coreml-diffusion beside us: another converter that takes single files, in its own environment.

It needs Python 3.12 or newer and older libraries than ours, so it is never imported here:

    python3.12 -m venv PEER
    PEER/bin/pip install coreml-diffusion==0.1.6

It reads the networks' configs from the Hub; these are put where its cache would have them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError

REPO = "stabilityai/stable-diffusion-xl-base-1.0"  # whose configs diffusers takes for any SDXL
COMMIT = "0" * 40  # no true one: nothing but the name of a folder
SECONDS = 20 * 60  # then it is stopped


@dataclass(frozen=True)
class Peer:
    """Where it is installed, and where its cache lies."""

    python: Path
    home: Path  # HF_HOME

    def command(self, file: Path, component: str, resolution: str, out: Path) -> tuple[str, ...]:
        """Its command line for a component of a single file."""
        width, height = resolution.split("x")
        batch = "2" if component == "unet" else "1"
        return (
            *("sh", "-c", 'mkdir -p "$0" && exec "$@"', str(out)),
            *("env", f"HF_HOME={self.home}", "HF_HUB_OFFLINE=1"),
            *("timeout", str(SECONDS), str(self.python), "-m", "coreml_diffusion.cli", "convert"),
            *("--ckpt", str(file), "--model-version", "SDXL", "--component", component),
            *("--width", width, "--height", height, "--batch-size", batch),
            *("--attn-impl", "ORIGINAL", "--out", str(out / "model.mlpackage")),
        )


def make_peer(python: Path, home: Path, checkpoint: Path) -> Peer:
    """The peer of an environment, whose cache gets the configs of a checkpoint folder.

    Raises:
        InputError: it is not installed there.
    """
    # Not resolved: the python of an environment is a link, and known by where that lies.
    python = Path(os.path.abspath(python))  # noqa: PTH100
    try:
        asked = [str(python), "-c", "import coreml_diffusion.cli"]
        works = subprocess.run(asked, capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works:
        raise InputError(
            "coreml-diffusion is not installed there",
            where=python,
            hint="Make it an environment of its own (python3.12 -m venv PEER; PEER/bin/pip install "
            "coreml-diffusion==0.1.6), and give --peer PEER/bin/python.",
        )
    storage = home / "hub" / f"models--{REPO.replace('/', '--')}"
    shutil.rmtree(storage, ignore_errors=True)
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT, "utf-8")
    for file in sorted(p for p in checkpoint.rglob("*") if p.suffix in (".json", ".txt")):
        target = storage / "snapshots" / COMMIT / file.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return Peer(python, home)
