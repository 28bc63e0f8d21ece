"""What merging a LoRA costs for each weight, by kind: what `convert.plan.estimate` counts with.

    python -m bench.full_size FOLDER         # the checkpoint: 6.9 GB, about a minute and a half
    python -m bench.sources.loras FOLDER     # a table; half a minute

Three large tensors of the UNet are read as float16 and hashed, as a package's weights are, as they
are and with a LoRA; nothing is written but the LoRAs of these, in a folder that goes again.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint, Shape
from convert.checkpoint.tensors import Tensor
from convert.files.appearing import appearing
from convert.lora.apply import Lora, apply
from convert.opening.door import open_checkpoint

RANK = 32
PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_text_model_",
    "text_encoder_2": "lora_te2_text_model_",
    "text_projection": "lora_te2_",  # which lies beside `text_model`
}
LARGE = (  # a convolution, an attention's projection, the widest linear layer
    "up_blocks.0.resnets.0.conv1.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
)
KINDS = ("LoRA", "two LoRAs", "DoRA", "LoHa", "LoKr", "difference")
ROUNDS = 5


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    checkpoint = open_checkpoint(Path(arguments[0]))
    before = checkpoint.component_tensors("unet")
    shapes = ["×".join(map(str, before[name].shape)) for name in LARGE]
    cells = "more CPU, ns per weight", *shapes
    print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
    plain = [_read(before[name]) for name in LARGE]
    for kind in KINDS:
        with TemporaryDirectory() as folder:
            path = Path(folder, "lora.safetensors")
            _write_one(checkpoint, path, kind)
            loras = [Lora(path, 0.5)] * (2 if kind == "two LoRAs" else 1)
            after = apply(checkpoint, loras)[0].component_tensors("unet")
            more = [
                f"{(_read(after[name]) - base) / before[name].size * 1e9:.2f}"
                for name, base in zip(LARGE, plain, strict=True)
            ]
        print(f"| {' | '.join((kind, *more))} |", flush=True)
    return 0


def _read(tensor: Tensor) -> float:
    """Seconds of CPU to read and hash a tensor as float16, the least of some rounds."""

    def once() -> float:
        start = time.process_time()
        digest = hashlib.sha256()
        for chunk in tensor.chunks(np.float16):
            digest.update(chunk.data)
        return time.process_time() - start

    return min(once() for _ in range(ROUNDS))


def write_lora(checkpoint: Checkpoint, path: Path, *, seed: int) -> None:
    """A LoRA of random values over every matrix of the networks but for the tables of embeddings.

    So it has all that trainers offer, convolutions too; the usual ones leave these out.
    """
    tensors: dict[str, np.ndarray] = {}
    random = np.random.default_rng(seed)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, tensor in checkpoint.parts[part].tensors.items():
            is_table = part != "unet" and "_embedding." in name
            if len(tensor.shape) > 1 and not is_table:
                module = _module(part, name)
                tensors |= {f"{module}.{k}": v for k, v in _lora(tensor.shape, random)}
                tensors[f"{module}.alpha"] = np.array(RANK / 2, np.float16)
    _save(path, tensors)


def _write_one(checkpoint: Checkpoint, path: Path, kind: str) -> None:
    """A LoRA of one kind over `LARGE` alone."""
    make = {"LoHa": _loha, "LoKr": _lokr, "difference": _difference}.get(kind, _lora)
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name in LARGE:
        module = _module("unet", name)
        shape = checkpoint.parts["unet"].tensors[name].shape
        tensors |= {f"{module}.{key}": value for key, value in make(shape, random)}
        if kind == "DoRA":
            column = (shape[0], *(1,) * (len(shape) - 1))
            tensors[f"{module}.dora_scale"] = np.ones(column, np.float16)
    _save(path, tensors)


def _module(part: str, name: str) -> str:
    name = name.removesuffix(".weight")
    return PREFIXES.get(name, PREFIXES[part]) + name.replace(".", "_")


Made = Iterator[tuple[str, np.ndarray]]


def _lora(shape: Shape, random: np.random.Generator) -> Made:
    up = (shape[0], RANK, *(1,) * (len(shape) - 2))
    yield "lora_up.weight", _values(up, random)
    yield "lora_down.weight", _values((RANK, *shape[1:]), random)


def _loha(shape: Shape, random: np.random.Generator) -> Made:
    for number in (1, 2):
        yield f"hada_w{number}_a", _values((shape[0], RANK), random)
        yield f"hada_w{number}_b", _values((RANK, math.prod(shape[1:])), random)


def _lokr(shape: Shape, random: np.random.Generator) -> Made:
    factor = 8  # LyCORIS's usual one
    yield "lokr_w1", _values((factor, factor), random)
    yield "lokr_w2_a", _values((shape[0] // factor, RANK), random)
    yield "lokr_w2_b", _values((RANK, math.prod(shape[1:]) // factor), random)


def _difference(shape: Shape, random: np.random.Generator) -> Made:
    yield "diff", _values(shape, random)


def _values(shape: Iterable[int], random: np.random.Generator) -> np.ndarray:
    values: np.ndarray = random.standard_normal(tuple(shape), np.float32) * np.float32(0.02)
    return values.astype(np.float16)


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with appearing(path) as new:
        save_file(tensors, new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
