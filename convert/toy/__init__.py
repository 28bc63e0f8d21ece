"""The toy checkpoint: a small SDXL to try conversion and verification with."""

from __future__ import annotations

from pathlib import Path

from convert.random_checkpoint import SMALL, WORDS, write_checkpoint

CARD = """---
license: apache-2.0
tags: [text-to-image, stable-diffusion-xl]
---
# Toy SDXL

Random weights in SDXL's structure, made by `sdxl-coreml toy`. It generates noise; it is there to
try conversion and verification in seconds.
"""


def write_toy(folder: Path) -> None:
    """Write the toy checkpoint; raises InputError if `folder` exists and is not empty."""
    write_checkpoint(folder, SMALL, words=WORDS.split())
    (folder / "README.md").write_text(CARD, "utf-8")
