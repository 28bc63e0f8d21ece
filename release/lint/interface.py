"""The interface that consumers of SDXL bundles need, checked on metadata.json.

Sizes that depend on the checkpoint or the resolution are names; each name has one value in a
bundle, so models of two resolutions do not pass as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convert.components import INPUT_ALIASES, OUTPUT_ALIASES
from release.lint.swift import shape

((IMAGE_INPUT, IMAGE_ALIAS),) = INPUT_ALIASES["vae_encoder"].items()
((_, TEXT_ALIAS),) = OUTPUT_ALIASES["text_encoder"].items()

Pattern = tuple[tuple[str, ...], tuple[Any, ...]]  # dtypes allowed, sizes

F16, F32 = ("Float16",), ("Float32",)
VAE = ("Float32", "Float16")
UNET_INPUTS: dict[str, Pattern] = {
    "sample": (F16, (2, "channels", "h", "w")),
    "timestep": (F16, (2,)),
    "encoder_hidden_states": (F16, (2, "context", 1, 77)),
    "time_ids": (F16, (2, "time ids")),
    "text_embeds": (F16, (2, "pooled")),
}
INTERFACES: dict[str, tuple[dict[str, Pattern], dict[str, Pattern]]] = {
    "Unet": (UNET_INPUTS, {"noise_pred": (F32, (2, 4, "h", "w"))}),
    "UnetRefiner": (
        {
            **UNET_INPUTS,
            "encoder_hidden_states": (F16, (2, "width 2", 1, 77)),
            "time_ids": (F16, (2, 5)),
        },
        {"noise_pred": (F32, (2, 4, "h", "w"))},
    ),
    "TextEncoder": (
        {"input_ids": (F32, (1, 77))},
        {"hidden_embeds": (F32, (1, 77, "width 1")), "pooled_outputs": (F32, (1, None))},
    ),
    "TextEncoder2": (
        {"input_ids": (F32, (1, 77))},
        {"hidden_embeds": (F32, (1, 77, "width 2")), "pooled_outputs": (F32, (1, "pooled"))},
    ),
    "VAEDecoder": ({"z": (VAE, (1, 4, "h", "w"))}, {"image": (F32, (1, 3, "H", "W"))}),
    "VAEEncoder": (
        {IMAGE_INPUT: (VAE, (1, 3, "H", "W"))},
        {"latent": (F32, (1, 8, "h", "w"))},
    ),
}


def mismatches(entries: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(rule, model, problem) for everything about the interfaces that is not as it should be.

    Args:
        entries: the object in metadata.json, by model (`Unet`, …); those that could be read.
    """
    bound: dict[str, tuple[int, str]] = {}  # size and where it was first seen, by name
    for model, (inputs, outputs) in INTERFACES.items():
        if model not in entries:
            continue
        for key, expected in (("inputSchema", inputs), ("outputSchema", outputs)):
            found = _features(entries[model], key)
            wanted = dict(expected)
            if model == "VAEEncoder" and IMAGE_ALIAS in found:
                wanted = {IMAGE_ALIAS: wanted[IMAGE_INPUT]} if key == "inputSchema" else wanted
            if TEXT_ALIAS in found and model.startswith("TextEncoder") and key == "outputSchema":
                wanted[TEXT_ALIAS] = wanted["hidden_embeds"]
            yield from _names(model, key, found, wanted)
            for name in wanted.keys() & found.keys():
                yield from _feature(model, name, found[name], wanted[name], bound)
    yield from _relations(bound)


def _features(entry: Any, key: str) -> dict[str, tuple[str, list[int]]]:
    """dtype and sizes of each feature; none where the schema is not readable."""
    try:
        return {str(f["name"]): (str(f["dataType"]), shape(str(f["shape"]))) for f in entry[key]}
    except (LookupError, TypeError):
        return {}


def _names(
    model: str, key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    kind = "input" if key == "inputSchema" else "output"
    for name in wanted.keys() - found.keys():
        yield "interface", model, f"has no {kind} `{name}`"
    extra = sorted(found.keys() - wanted.keys())
    # A second output of the UNet and the VAE decoder is told by Apple's own rule.
    if extra and not (kind == "output" and model in ("Unet", "VAEDecoder")):
        yield "interface", model, f"has an {kind} that no app fills or reads: {', '.join(extra)}"


def _feature(
    model: str,
    name: str,
    found: tuple[str, list[int]],
    wanted: Pattern,
    bound: dict[str, tuple[int, str]],
) -> Iterator[tuple[str, str, str]]:
    dtype, sizes = found
    dtypes, pattern = wanted
    if dtype not in dtypes:
        yield "dtype", model, f"`{name}` is {dtype}; it has to be {' or '.join(dtypes)}"
    if not sizes:
        return  # Core ML needs no sizes of an output
    if len(sizes) != len(pattern):
        yield "shape", model, f"`{name}` is {sizes}; it has to have {len(pattern)} sizes"
        return
    for size, symbol in zip(sizes, pattern, strict=True):
        if isinstance(symbol, int) and size != symbol:
            yield "shape", model, f"`{name}` is {sizes}, where {symbol} stands for one of its sizes"
            return
        if isinstance(symbol, str):
            known, where = bound.setdefault(symbol, (size, f"`{name}` of {model}"))
            if size != known:
                rule = "sizes-disagree" if symbol in "hwHW" else "shape"
                yield rule, model, f"`{name}` is {sizes}; {where} has {known} there, not {size}"
                return


def _relations(bound: Mapping[str, tuple[int, str]]) -> Iterator[tuple[str, str, str]]:
    size = {symbol: value for symbol, (value, _) in bound.items()}
    for latent, image in (("h", "H"), ("w", "W")):
        if {latent, image} <= size.keys() and size[image] != 8 * size[latent]:
            _, where = bound[image]
            problem = f"{where} has {size[image]} where the UNet's latents have {size[latent]}"
            yield "sizes-disagree", "VAEDecoder", f"{problem}; images have 8 times as many"
    widths = {"width 1", "width 2", "context"}
    if widths <= size.keys() and size["width 1"] + size["width 2"] != size["context"]:
        yield (
            "shape",
            "Unet",
            f"takes {size['context']} values for each token; the text encoders give "
            f"{size['width 1']} + {size['width 2']}",
        )
