"""What a package says of itself: component, resolution, attention, precision, bits per weight.

All of it is read from the program, none from the file's name unless nothing else decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from convert.checkpoint import Checkpoint
from convert.components import BATCH, COMPONENTS, MAX_TOKENS
from convert.errors import InputError
from convert.values import Resolution
from verify.mil import Constant, Op, Program, TensorType

Shape = tuple[int, ...]
SPLIT_EINSUM = "split_einsum"
QUERY_CHUNK = 512  # of split_einsum_v2
_DENSE = ("fp16", "fp32")


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
        tokens = {"input_ids": (1, MAX_TOKENS)}
        return tokens, {"hidden_embeds": (1, MAX_TOKENS, width), "pooled_outputs": (1, pooled)}
    image, latent = (-1, -1), (-1, -1)
    if resolution is not None:
        factor = vae_factor(source)
        image = (resolution.height, resolution.width)
        latent = (resolution.height // factor, resolution.width // factor)
    if component == "unet":
        cross = config["cross_attention_dim"]
        cross = int(cross[0] if isinstance(cross, list | tuple) else cross)
        embeds = int(source.part("text_encoder_2").config.get("projection_dim", 512))
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


def fits(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> bool:
    """Whether names and shapes agree; -1 in `expected` is any size."""
    return found.keys() == expected.keys() and all(
        len(found[n]) == len(expected[n])
        and all(e in (-1, f) for f, e in zip(found[n], expected[n], strict=True))
        for n in expected
    )


def infer_component(program: Program, source: Checkpoint) -> str:
    """Which component of the checkpoint a package is: by names, then shapes, then its file's name.

    Raises:
        InputError: it is none, or either text encoder.
    """
    inputs = {f.name: f.shape for f in program.inputs}
    outputs = {f.name: f.shape for f in program.outputs}
    named = [
        name
        for name in source.components
        if inputs.keys() == COMPONENTS[name].inputs.keys()
        and outputs.keys() == COMPONENTS[name].outputs.keys()
    ]
    fitting = []
    for name in named:
        ins, outs = expected_shapes(source, name, None)
        if fits(inputs, ins) and fits({n: s or outs[n] for n, s in outputs.items()}, outs):
            fitting.append(name)
    candidates = fitting or named
    if len(candidates) > 1:
        stem = program.path.stem.casefold()
        by_name = [n for n in candidates if stem in (n, COMPONENTS[n].file.casefold())]
        candidates = by_name or candidates
    if len(candidates) == 1:
        return candidates[0]
    interface = f"inputs {', '.join(inputs)} and outputs {', '.join(outputs)}"
    if not candidates:
        raise InputError(
            f"its {interface} are those of no component of {source.name}",
            where=program.path,
            hint=f"The components are {', '.join(source.components)}.",
        )
    raise InputError(
        f"could be {' or '.join(candidates)}, whose interfaces are the same",
        where=program.path,
        hint=f"Name the file {' or '.join(COMPONENTS[n].file for n in candidates)}.mlpackage.",
    )


def infer_resolution(program: Program, component: str, source: Checkpoint) -> Resolution | None:
    """The image size that a package is made for; None for a text encoder."""
    shapes = {f.name: f.shape for f in program.inputs}
    name, factor = {
        "unet": ("sample", vae_factor(source)),
        "vae_decoder": ("z", vae_factor(source)),
        "vae_encoder": ("x", 1),
    }.get(component, ("", 1))
    shape = shapes.get(name, ())
    if len(shape) != 4 or min(shape) < 1:
        return None
    return Resolution(shape[3] * factor, shape[2] * factor)


def infer_attention(program: Program) -> tuple[str, ...]:
    """The attention implementations that the ops are compatible with.

    `split_einsum` and `split_einsum_v2` are the same program where no attention has more than 512
    queries. Over [B, T, 1, S] weights, S is the number of queries at a time and T, of
    self-attention, their number in all.
    """
    if not any(op.type == "einsum" for op in program.ops):
        return ("original",)
    weights = [op.outputs[0][1].shape for op in program.ops if op.type == "softmax"]
    shapes = [s for s in weights if len(s) == 4 and s[2] == 1]
    longest = max((s[1] for s in shapes), default=0)
    at_a_time = max((s[3] for s in shapes), default=0)
    if longest <= QUERY_CHUNK:
        return (SPLIT_EINSUM, f"{SPLIT_EINSUM}_v2")
    return (f"{SPLIT_EINSUM}_v2",) if at_a_time <= QUERY_CHUNK else (SPLIT_EINSUM,)


def precision(program: Program) -> str:
    """fp16 if any op computes in it, else fp32."""
    computed = {
        type_.dtype
        for op in program.ops
        if op.type != "const" and not op.type.startswith("constexpr_")
        for _, type_ in op.outputs
    }
    return "fp16" if "fp16" in computed else "fp32"


def weight_formats(program: Program) -> Counter[str]:
    """Number of weights by how they are stored: fp16, fp32, palette-6, int8, sparse, …

    Constants of fewer than ten elements are parameters of ops, not weights.
    """
    found: Counter[str] = Counter()
    constants = dict(program.constants())
    for op in program.ops:
        if op.type.startswith("constexpr_"):
            count = math.prod(op.outputs[0][1].shape)
            found[_compressed(op, constants)] += count
    used = {
        name
        for op in program.ops
        if not op.type.startswith("constexpr_")
        for bindings in op.inputs.values()
        for name in bindings
        if isinstance(name, str)
    }
    for name, constant in constants.items():
        count = math.prod(constant.type.shape)
        if name in used and constant.type.dtype in _DENSE and count >= 10:
            found[constant.type.dtype] += count
    return found


def _compressed(op: Op, constants: Mapping[str, Constant]) -> str:
    """The name of the format that a `constexpr` op decodes."""

    def parameter(name: str) -> TensorType | None:
        given: Any = op.attributes.get(name) or (op.inputs.get(name) or [None])[0]
        if isinstance(given, str):
            given = constants.get(given)
        return None if given is None else given.type

    if (lut := parameter("lut")) is not None:
        indices = parameter("indices")
        bits = indices.dtype.removeprefix("uint") if indices is not None else "8"
        if len(lut.shape) == 1:  # iOS 16 packs the indices into bytes
            bits = str(max(1, (lut.shape[0] - 1).bit_length()))
        return f"palette-{bits}"
    for name in ("quantized_data", "data"):
        if (data := parameter(name)) is not None and data.dtype.startswith(("int", "uint")):
            return f"int{data.dtype.removeprefix('u').removeprefix('int')}"
    return op.type.removeprefix("constexpr_")
