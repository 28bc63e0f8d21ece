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
QUERY_CHUNK = 512  # of split_einsum_v2


def vae_factor(source: Checkpoint) -> int:
    """Pixels per latent, along each side."""
    return 2 ** (len(source.part("vae_decoder").config["block_out_channels"]) - 1)


def expected_shapes(
    source: Checkpoint, component: str, resolution: Resolution | None
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The inputs' and the outputs' shapes, from the checkpoint's configs alone.

    Text encoders need no resolution. Where it is None, sizes that depend on it are -1.
    """
    config = source.part(component).config
    if component.startswith("text_encoder"):
        width = int(config.get("hidden_size", 512))
        pooled = int(config.get("projection_dim", 512)) if component == "text_encoder_2" else width
        tokens: dict[str, Shape] = {"input_ids": (1, MAX_TOKENS)}
        return tokens, {"hidden_embeds": (1, MAX_TOKENS, width), "pooled_outputs": (1, pooled)}
    image, latent = (-1, -1), (-1, -1)
    if resolution is not None:
        factor = vae_factor(source)
        image = (resolution.height, resolution.width)
        latent = (resolution.height // factor, resolution.width // factor)
    if component == "unet":
        cross = config["cross_attention_dim"]
        cross = int(cross[0] if isinstance(cross, list | tuple) else cross)
        embeds = source.text_embed_dim
        features = int(config["projection_class_embeddings_input_dim"]) - embeds
        inputs = {
            "sample": (BATCH, int(config.get("in_channels", 4)), *latent),
            "timestep": (BATCH,),
            "encoder_hidden_states": (BATCH, cross, 1, MAX_TOKENS),
            "time_ids": (BATCH, features // int(config["addition_time_embed_dim"])),
            "text_embeds": (BATCH, embeds),
        }
        return inputs, {"noise_pred": (BATCH, int(config.get("out_channels", 4)), *latent)}
    channels = int(config.get("latent_channels", 4))
    if component == "vae_decoder":
        decoded = (1, int(config.get("out_channels", 3)), *image)
        return {"z": (1, channels, *latent)}, {"image": decoded}
    return {"x": (1, int(config.get("in_channels", 3)), *image)}, {
        "latent": (1, 2 * channels, *latent)
    }


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
        "unet": ("sample", vae_factor(source)),
        "vae_decoder": ("z", vae_factor(source)),
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
