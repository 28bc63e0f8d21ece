"""A checkpoint as a single file with LDM's names, as Stability AI publishes SDXL's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint, Part
from convert.checkpoint.keys import PROJECTION, KeyMap, fused_keys, keys_of
from convert.checkpoint.layout import REFINERS
from convert.components import COMPONENTS
from convert.files.appearing import appearing

Arrays = dict[str, np.ndarray]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def write_single_file(checkpoint: Checkpoint, path: Path) -> None:
    """Write the networks of a checkpoint, which are held in memory meanwhile, into one file.

    Configs and tokenizers have no place in it: whoever opens it knows them, or gives a base.

    Raises:
        InputError: the weights cannot be read.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    data = save(ldm_arrays(checkpoint), {"format": "pt"})
    with appearing(path) as new:
        new.write_bytes(data)


def ldm_arrays(checkpoint: Checkpoint) -> Arrays:
    """The values of all networks by LDM's names; float16 where they are stored so, else float32."""
    refiner = "text_encoder" not in checkpoint.parts
    found: Arrays = {}
    for name, part in checkpoint.parts.items():
        prefix = REFINERS if refiner and name == "text_encoder_2" else PREFIXES[name]
        component = next(c for c, spec in COMPONENTS.items() if spec.part == name)
        keys = keys_of(checkpoint.config(component))
        found |= {prefix + key: value for key, value in _named(part, keys).items()}
    return found


def _named(part: Part, keys: KeyMap) -> Arrays:
    arrays = {
        key: tensor.read(np.float16 if tensor.dtype == "F16" else np.float32)
        for key, tensor in part.tensors.items()
    }
    if part.name == "text_encoder":
        return arrays
    found: Arrays = {}
    if part.name == "text_encoder_2":
        found[PROJECTION[1]] = np.ascontiguousarray(arrays.pop(PROJECTION[0]).T)
        layers = sum(key.endswith("self_attn.q_proj.weight") for key in arrays)
        for layer in range(layers):
            for kind in ("weight", "bias"):
                whole, three = fused_keys(layer, kind)
                found[whole] = np.concatenate([arrays.pop(key) for key in three])
    for key, value in arrays.items():
        ldm = keys.ldm(key)
        assert ldm is not None, key
        if part.name == "vae" and ".attn_1." in ldm and value.ndim == 2:
            value = value[:, :, None, None]  # LDM has them as 1×1 convolutions
        found[ldm] = value
    return found
