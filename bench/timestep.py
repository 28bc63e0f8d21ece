"""One timestep of the UNet: our evaluator on a package, or diffusers in float32 on the checkpoint.

    python -m bench.timestep diffusers CHECKPOINT FILE
    python -m bench.timestep fp32|typed ARTIFACT FILE

Each runs in a process of its own, on the same inputs. diffusers writes its result to FILE, the
evaluator compares its own with it. Prints JSON. The weights are read through once beforehand, so
that the timestep itself does not wait for the disk.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1 << 24  # bytes
INTERFACE = {"encoder_hidden_states", "sample", "text_embeds", "time_ids", "timestep"}


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; returns the exit code."""
    if len(arguments) != 3 or arguments[0] not in ("diffusers", "fp32", "typed"):
        print(__doc__, file=sys.stderr)
        return 2
    how, source, file = arguments[0], Path(arguments[1]), Path(arguments[2])
    found = diffusers(source, file) if how == "diffusers" else evaluate(source, file, how)
    print(json.dumps(found))
    return 0


def diffusers(checkpoint: Path, file: Path) -> dict[str, Any]:
    """Run diffusers' own class as its users do; `seconds` to load, and of one timestep."""
    import torch
    from diffusers import UNet2DConditionModel

    start = time.perf_counter()
    folder = checkpoint / "unet"
    variant = "fp16" if any(folder.glob("*.fp16.*")) else None
    model = UNet2DConditionModel.from_pretrained(
        folder, variant=variant, torch_dtype=torch.float32, local_files_only=True
    ).eval()
    config = model.config
    text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    given = inputs(
        {
            "sample": (2, config.in_channels, config.sample_size, config.sample_size),
            "encoder_hidden_states": (2, config.cross_attention_dim, 1, 77),
            "text_embeds": (2, text),
            "time_ids": (2, 6),
            "timestep": (2,),
        }
    )
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in given.items()}
    loaded = time.perf_counter()
    with torch.inference_mode():
        noise = model(
            tensors["sample"],
            tensors["timestep"],
            encoder_hidden_states=tensors["encoder_hidden_states"].squeeze(2).transpose(1, 2),
            added_cond_kwargs={name: tensors[name] for name in ("text_embeds", "time_ids")},
        ).sample
    end = time.perf_counter()
    np.save(file, noise.numpy())
    return {"load": loaded - start, "timestep": end - loaded}


def evaluate(artifact: Path, file: Path, mode: str) -> dict[str, Any]:
    """Run the package in an artifact's folder; `snr_db` is against diffusers' result."""
    from verify.judge.metrics import compare
    from verify.runtime.evaluator import Evaluator

    start = time.perf_counter()
    package = next(artifact.rglob("Unet.mlpackage"))
    for weights in package.rglob("weight.bin"):
        with weights.open("rb") as opened:
            while opened.read(BLOCK):
                pass
    evaluator = Evaluator(package, mode=mode)  # type: ignore[arg-type]
    given = inputs({name: type_.shape for name, type_ in evaluator.program.main.inputs.items()})
    loaded = time.perf_counter()
    noise = evaluator.run(given)["noise_pred"]
    end = time.perf_counter()
    metrics = compare(np.load(file), noise.numpy())
    return {"load": loaded - start, "timestep": end - loaded, "snr_db": metrics.snr_db}


def inputs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Inputs of the UNet by name, float16: random latents and embeddings, one timestep.

    The same for the same shapes, whatever their order.
    """
    if shapes.keys() != INTERFACE:
        raise ValueError(f"a UNet with the inputs {', '.join(sorted(shapes))}")
    generator = np.random.Generator(np.random.PCG64(0))
    found = {}
    for name in sorted(shapes):
        found[name] = generator.standard_normal(shapes[name]).astype(np.float16)
    height, width = (8 * size for size in shapes["sample"][2:])
    found["time_ids"][:] = [height, width, 0, 0, height, width]
    found["timestep"][:] = 500
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
