"""Train the toy checkpoint: three quarters of an hour on two CPU cores.

python -m convert.toy.train --out DIR

DIR/checkpoint is the result; the other files in DIR are what an interrupted training goes on from.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from convert.toy.autoencoder import train_autoencoder
from convert.toy.denoiser import train_denoiser
from convert.toy.export import write_networks, write_tokenizers

AUTOENCODER_STEPS = 2400
DENOISER_STEPS = 4000


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, then write the checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m convert.toy.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder, made if need be")
    out: Path = parser.parse_args(arguments).out
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the training loop has threads of its own
    autoencoder = train_autoencoder(out, steps=AUTOENCODER_STEPS, say=_say)
    tokenizers = write_tokenizers(checkpoint)
    denoiser = train_denoiser(autoencoder, tokenizers, out, steps=DENOISER_STEPS, say=_say)
    write_networks(checkpoint, autoencoder, denoiser)
    _say(f"written: {checkpoint}")


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
