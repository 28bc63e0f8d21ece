"""A full-size checkpoint read as it is, and with two LoRAs of rank 32 over all its modules.

    python -m bench.full_size FOLDER     # the checkpoint: 6.9 GB, about a minute and a half
    python -m bench.sources.loras FOLDER         # the LoRAs (0.9 GB, beside it), and the table
    python -m bench.sources.loras FOLDER --one   # one large tensor of each kind, for a first look

Every tensor of the UNet is read as float16 and hashed, as a package's weights are; nothing is
written. So the ratio is an upper bound of what a conversion shows, which writes in both cases.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import Tensor
from convert.lora.apply import Lora, apply
from convert.opening.door import open_checkpoint

RANK = 32
LARGE = (  # a convolution, an attention's projection, the widest linear layer
    "up_blocks.0.resnets.0.conv1.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
)
SIZES = "tensor", "as it is, s", "with two LoRAs, s", "ratio", "more, ns per weight"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; returns the exit code."""
    if not arguments or len(arguments) > 2 or arguments[1:] not in ([], ["--one"]):
        print(__doc__, file=sys.stderr)
        return 2
    checkpoint = open_checkpoint(Path(arguments[0]))
    loras = [Lora(write_lora(checkpoint, seed), 0.5) for seed in (1, 2)]
    merged, reports = apply(checkpoint, loras)
    print(f"{reports[0].line()}, twice\n", file=sys.stderr)
    before, after = (c.component_tensors("unet") for c in (checkpoint, merged))
    print(f"| {' | '.join(SIZES)} |\n|{'---|' * len(SIZES)}")
    if arguments[1:]:
        for name in LARGE:
            row(f"{'×'.join(map(str, before[name].shape))}", [before[name]] * 5, [after[name]] * 5)
        return 0
    row("the UNet", before.values(), after.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory: {peak:.0f} MiB.")
    return 0


def row(name: str, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
    """Measure and print a row of the table."""
    before = list(before)
    plain, with_loras = read(before), read(after)
    more = (with_loras - plain) / sum(tensor.size for tensor in before) * 1e9
    cells = (name, f"{plain:.2f}", f"{with_loras:.2f}", f"{with_loras / plain:.2f}", f"{more:.2f}")
    print(f"| {' | '.join(cells)} |", flush=True)


def read(tensors: Iterable[Tensor]) -> float:
    """Seconds to read and hash tensors as float16, once the page cache has their files."""
    tensors = list(tensors)
    for file in {file for tensor in tensors for file in tensor.files}:
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    start = time.perf_counter()
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in tensor.chunks(np.float16):
            digest.update(chunk.data)
    return time.perf_counter() - start


def write_lora(checkpoint: Checkpoint, seed: int) -> Path:
    """A LoRA of random values over all weights of the UNet that are no norms', if it is missing."""
    from safetensors.numpy import save_file

    path = checkpoint.path.with_name(f"{checkpoint.path.name}-lora-{seed}.safetensors")
    if path.exists():
        return path
    random, tensors = np.random.default_rng(seed), {}
    for name, tensor in checkpoint.part("unet").tensors.items():
        if len(tensor.shape) > 1:
            module = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            up = (tensor.shape[0], RANK, *(1,) * (len(tensor.shape) - 2))
            for role, shape in {"up": up, "down": (RANK, *tensor.shape[1:])}.items():
                values = random.standard_normal(shape, np.float32) * 0.02
                tensors[f"{module}.lora_{role}.weight"] = values.astype(np.float16)
            tensors[f"{module}.alpha"] = np.array(16, np.float16)
    save_file(tensors, path)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
