"""The same weights as people have them: as a single file, as pickles, with LoRAs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.sources.loras import write_lora
from convert.checkpoint.tensors import StoredTensor, read_header
from convert.files.appearing import appearing
from convert.files.dtypes import FLOATS
from convert.opening.door import open_checkpoint
from convert.process.progress import Say
from convert.toy.single_file import write_single_file

LORAS = 2


@dataclass(frozen=True)
class SourceFiles:
    """Where they lie."""

    single: Path  # safetensors, with LDM's names
    zipped: Path  # .ckpt, as PyTorch writes it
    legacy: Path  # .ckpt, as it wrote before 1.6
    loras: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.single, self.zipped, self.legacy, *self.loras)


def make_files(folder: Path, checkpoint: Path, say: Say) -> SourceFiles:
    """Make those of a checkpoint folder that are not in `folder` yet; each appears complete.

    Raises:
        InputError: the checkpoint cannot be read.
        OSError: the disk is full, for example.
    """
    opened = open_checkpoint(checkpoint)
    name = checkpoint.name
    loras = tuple(folder / f"{name}-lora-{n + 1}.safetensors" for n in range(LORAS))
    files = SourceFiles(
        folder / f"{name}.safetensors",
        folder / f"{name}.ckpt",
        folder / "old" / f"{name}.ckpt",  # of the same name, which the packages have in them
        loras,
    )
    if not files.single.exists():
        say(f"writing {files.single.name}")
        write_single_file(opened, files.single)
    for path, is_zip in ((files.zipped, True), (files.legacy, False)):
        if not path.exists():
            say(f"writing {path.name}")
            _write_pickle(files.single, path, is_zip=is_zip)
    for number, path in enumerate(files.loras, 1):
        if not path.exists():
            say(f"writing {path.name}")
            write_lora(opened, path, seed=number)
    return files


def _write_pickle(single: Path, path: Path, *, is_zip: bool) -> None:
    """The tensors of a safetensors file as Lightning has them; they are mapped, not read."""
    import torch

    tensors = {name: torch.from_numpy(_mapped(t)) for name, t in read_header(single).items()}
    with appearing(path) as new:
        state = {"state_dict": tensors, "global_step": 0}
        torch.save(state, new, _use_new_zipfile_serialization=is_zip)


def _mapped(tensor: StoredTensor) -> np.ndarray:
    dtype, offset, shape = FLOATS[tensor.dtype], tensor.offset, tensor.shape
    return np.memmap(tensor.path, dtype, "c", offset, shape)  # PyTorch warns of what is read-only
