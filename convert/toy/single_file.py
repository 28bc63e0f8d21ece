"""A checkpoint as a single file with LDM's names, as Stability AI publishes SDXL's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.keys import PROJECTION, KeyMap, fused_keys, keys_of
from convert.checkpoint.layout import REFINERS
from convert.checkpoint.tensors import Tensor, gathered
from convert.components import COMPONENTS
from convert.files.appearing import appearing
from convert.files.dtypes import WIDTHS
from convert.process.progress import Advance, silent
from convert.toy.streamed import StreamedTensor, write_safetensors

Arrays = dict[str, np.ndarray]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
NUMPY = {"F16": np.float16, "F32": np.float32}


def write_single_file(checkpoint: Checkpoint, path: Path, *, advance: Advance = silent) -> None:
    """Write the networks of a checkpoint into one file, tensor by tensor.

    Configs and tokenizers have no place in it: whoever opens it knows them, or gives a base.

    Args:
        advance: called with the number of bytes written since the last call.

    Raises:
        InputError: the weights cannot be read.
        OSError: the file cannot be written.
    """
    tensors = ldm_tensors(checkpoint).items()
    # As safetensors' own writer has them: no tensor of a wide dtype lies behind one of a narrow.
    ordered = sorted(tensors, key=lambda item: (-WIDTHS[item[1].dtype], item[0]))
    with appearing(path) as new:
        write_safetensors(new, dict(ordered), advance=advance)


def ldm_arrays(checkpoint: Checkpoint) -> Arrays:
    """The values of all networks by LDM's names; float16 where they are stored so, else float32."""
    return {
        name: gathered(tensor.blocks(), tensor.shape, NUMPY[tensor.dtype])
        for name, tensor in ldm_tensors(checkpoint).items()
    }


def ldm_tensors(checkpoint: Checkpoint) -> dict[str, StreamedTensor]:
    """The tensors of all networks by LDM's names, of dtypes as `ldm_arrays` has them."""
    refiner = "text_encoder" not in checkpoint.parts
    found: dict[str, StreamedTensor] = {}
    for name, part in checkpoint.parts.items():
        prefix = REFINERS if refiner and name == "text_encoder_2" else PREFIXES[name]
        component = next(c for c, spec in COMPONENTS.items() if spec.part == name)
        keys = keys_of(checkpoint.config(component))
        found |= {prefix + key: tensor for key, tensor in _named(part, keys).items()}
    return found


def _named(part: Part, keys: KeyMap) -> dict[str, StreamedTensor]:
    tensors = dict(part.tensors)
    if part.name == "text_encoder":
        return {key: _as_it_is(tensor) for key, tensor in tensors.items()}
    found: dict[str, StreamedTensor] = {}
    if part.name == "text_encoder_2":
        found[PROJECTION[1]] = _transposed(tensors.pop(PROJECTION[0]))
        layers = sum(key.endswith("self_attn.q_proj.weight") for key in tensors)
        for layer in range(layers):
            for kind in ("weight", "bias"):
                whole, three = fused_keys(layer, kind)
                found[whole] = _joined([tensors.pop(key) for key in three])
    for key, tensor in tensors.items():
        ldm = keys.ldm(key)
        assert ldm is not None, key
        shape = tensor.shape
        if part.name == "vae" and ".attn_1." in ldm and len(shape) == 2:
            shape = (*shape, 1, 1)  # LDM has them as 1×1 convolutions
        found[ldm] = _as_it_is(tensor, shape)
    return found


def _as_it_is(tensor: Tensor, shape: tuple[int, ...] | None = None) -> StreamedTensor:
    dtype = _dtype(tensor)
    return StreamedTensor(dtype, shape or tensor.shape, lambda: tensor.chunks(NUMPY[dtype]))


def _transposed(tensor: Tensor) -> StreamedTensor:
    dtype = _dtype(tensor)
    return StreamedTensor(
        dtype, tensor.shape[::-1], lambda: [tensor.read(NUMPY[dtype]).T.reshape(-1)]
    )


def _joined(tensors: list[Tensor]) -> StreamedTensor:
    """Tensors of one shape but for the first axis, one behind another along it."""
    dtype = max(map(_dtype, tensors), key=WIDTHS.__getitem__)
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])

    def blocks() -> Iterable[np.ndarray]:
        for tensor in tensors:
            yield from tensor.chunks(NUMPY[dtype])

    return StreamedTensor(dtype, shape, blocks)


def _dtype(tensor: Tensor) -> str:
    return "F16" if tensor.dtype == "F16" else "F32"
