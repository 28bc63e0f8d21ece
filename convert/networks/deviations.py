"""Where our graphs differ from those of Apple's converter, and why: the whole list.

Everything else is theirs op for op (python_coreml_stable_diffusion e12202c with coremltools 9.0),
because what runs well on the Neural Engine cannot be tried without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deviation:
    """One difference: where, why, and how it changes the number of ops of each type."""

    component: str
    what: str
    why: str
    ops: Mapping[str, int] = field(default_factory=dict)


DEVIATIONS = (
    Deviation(
        "unet",
        "The sinusoidal embeddings of `timestep` and `time_ids` are computed in float32.",
        "In float16, 999 × frequency has a rounding step of up to half a radian: UNet output "
        "48.7 dB at t = 999 instead of 55.8 dB.",
        {"cast": 4},
    ),
    Deviation(
        "unet",
        "The embeddings concatenate cosine and sine in their final order.",
        "Apple's graph concatenates them in the other order, slices the halves apart and "
        "concatenates again.",
        {"concat": -2, "slice_by_index": -4},
    ),
    Deviation(
        "vae",
        "The epsilon of `batch_norm` is 1e-12 in float32, instead of 1e-5.",
        "These batch norms only apply the affine of a group norm, with variance 1: an epsilon "
        "of 1e-5 scales every one of them by 1 - 5e-6.",
    ),
    Deviation(
        "vae",
        "In float16, group norms divide a group with values above 64 by its largest before they "
        "square.",
        "float16 ends at 65504, so squares overflow from 256 on, and VAEs of SDXL reach thousands; "
        "PyTorch squares in float32. Nothing is divided where all are below 64.",
    ),
    Deviation(
        "vae",
        "Where latents are scaled by other numbers than 0.13025 (`scaling_factor`, `shift_factor`, "
        "`latents_mean`, `latents_std`), decoder and encoder have a `mul` and an `add` for that.",
        "Apps scale by 0.13025 whatever the checkpoint says, and would draw wrong colours.",
    ),
    Deviation(
        "unet",
        "`split_einsum_v2` makes the last query chunk shorter where 512 does not divide the area.",
        "Apple's converter fails there: 8 of SDXL's 9 usual sizes.",
    ),
    Deviation(
        "unet",
        "Where a level has an odd height or width, its upsampling is followed by a "
        "`slice_by_index`.",
        "Apple's converter fails there; torch interpolates to the odd size, which is the same.",
    ),
    Deviation(
        "text_encoder",
        "Causal mask of -1e4; the end-of-text token is found by its id where the config has one.",
        "Finite, as Apple's package patches older transformers; newer configs need the id.",
    ),
    Deviation(
        "all",
        "Equal constants are one `const` op.",
        "Smaller programs: a quarter of the ops of a UNet.",
    ),
)


def expected_ops(component: str, apple: Mapping[str, int]) -> dict[str, int]:
    """Apple's op histogram with the deviations applied: what ours must be."""
    ops = dict(apple)
    for deviation in DEVIATIONS:
        if component.startswith(deviation.component):
            for op, change in deviation.ops.items():
                ops[op] = ops.get(op, 0) + change
    return {op: count for op, count in ops.items() if count}
