"""The interface that a checkpoint's configs ask of each component, and what a package has of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import BATCH, INPUT_ALIASES, MAX_TOKENS, OUTPUT_ALIASES
from convert.values import Resolution
from verify.mil import Program

Shape = tuple[int, ...]
T = TypeVar("T")
QUERY_CHUNK = 512  # of split_einsum_v2; told again, so that a slip of convert's shows


def expected_shapes(
    source: Checkpoint, component: str, resolution: Resolution | None
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The inputs' and the outputs' shapes, from the checkpoint's configs alone.

    Text encoders need no resolution. Where it is None, sizes that depend on it are -1.
    """
    if component in source.text_encoders:
        clip = source.text_encoders[component]
        pooled = clip.projection or clip.width
        tokens: dict[str, Shape] = {"input_ids": (1, MAX_TOKENS)}
        return tokens, {"hidden_embeds": (1, MAX_TOKENS, clip.width), "pooled_outputs": (1, pooled)}
    unet, vae = source.unet, source.vae
    image, latent = (-1, -1), (-1, -1)
    if resolution is not None:
        image = (resolution.height, resolution.width)
        latent = (resolution.height // vae.factor, resolution.width // vae.factor)
    if component == "unet":
        inputs = {
            "sample": (BATCH, unet.in_channels, *latent),
            "timestep": (BATCH,),
            "encoder_hidden_states": (BATCH, unet.cross_attention_dim, 1, MAX_TOKENS),
            "time_ids": (BATCH, unet.time_ids),
            "text_embeds": (BATCH, unet.text_embed_dim),
        }
        return inputs, {"noise_pred": (BATCH, unet.out_channels, *latent)}
    if component == "vae_decoder":
        decoded = (1, vae.out_channels, *image)
        return {"z": (1, vae.latent_channels, *latent)}, {"image": decoded}
    return {"x": (1, vae.in_channels, *image)}, {"latent": (1, 2 * vae.latent_channels, *latent)}


def with_aliases(
    program: Program, component: str, inputs: Mapping[str, T], outputs: Mapping[str, T]
) -> tuple[dict[str, T], dict[str, T]]:
    """The same by the names that the program has: a bundle's models have second names for some.

    Inputs are renamed where the program does not have the usual name; outputs are there twice.
    """
    found_in, found_out = ({f.name for f in fs} for fs in (program.inputs, program.outputs))
    second = INPUT_ALIASES.get(component, {})
    renamed = {
        second[n] if n in second and second[n] in found_in and n not in found_in else n: value
        for n, value in inputs.items()
    }
    again = {
        alias: outputs[n]
        for n, alias in OUTPUT_ALIASES.get(component, {}).items()
        if n in outputs and alias in found_out
    }
    return renamed, {**outputs, **again}


def fits(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> bool:
    """Whether names and shapes agree; -1 in `expected` is any size."""
    return found.keys() == expected.keys() and all(
        len(found[n]) == len(expected[n])
        and all(e in (-1, f) for f, e in zip(found[n], expected[n], strict=True))
        for n in expected
    )


def infer_resolution(program: Program, component: str, source: Checkpoint) -> Resolution | None:
    """The image size that a package is made for; None for a text encoder."""
    shapes = {f.name: f.shape for f in program.inputs}
    name, factor = {
        "unet": ("sample", source.vae.factor),
        "vae_decoder": ("z", source.vae.factor),
        "vae_encoder": ("x", 1),
    }.get(component, ("", 1))
    alias = INPUT_ALIASES.get(component, {}).get(name, name)
    shape = shapes.get(name) or shapes.get(alias, ())
    if len(shape) != 4 or min(shape) < 1:
        return None
    return Resolution(shape[3] * factor, shape[2] * factor)


def has_long_attention(program: Program) -> bool:
    """Whether an attention has more than 512 queries, so that `split_einsum_v2` cuts them up.

    Without one, `split_einsum` and `split_einsum_v2` are the same program. Their weights are
    [B, T, 1, S]; of self-attention, T is the number of queries in all.
    """
    weights = [op.outputs[0][1].shape for op in program.ops if op.type == "softmax"]
    return any(len(s) == 4 and s[2] == 1 and s[1] > QUERY_CHUNK for s in weights)


def precision(program: Program) -> str:
    """fp16 if any op computes in it, else fp32."""
    computed = {
        type_.dtype
        for op in program.ops
        if op.type != "const" and not op.type.startswith("constexpr_")
        for _, type_ in op.outputs
    }
    return "fp16" if "fp16" in computed else "fp32"


def is_compressed(program: Program) -> bool:
    """Whether any weight is stored in fewer bits than it is computed in."""
    decoders = {op.type for op in program.ops if op.type.startswith("constexpr_")}
    return bool(decoders - {"constexpr_cast"})
