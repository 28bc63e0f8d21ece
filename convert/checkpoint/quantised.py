"""Weights that were made smaller: 8-bit floats with a scale are read, other kinds refused by name.

ComfyUI keeps a scale for each Linear whose weight is an 8-bit float, in an older spelling
(`scaled_fp8` in the file, `X.scale_weight`) and in a newer one (`X.weight_scale`, and the format in
`X.comfy_quant` or in the header's `_quantization_metadata`). Without the scale such a weight can be
read all the same, and is wrong: so one that lacks it is an error.
Source: ComfyUI `comfy/model_detection.py`, `comfy/ops.py`, `comfy/utils.py` and QUANTIZATION.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint.derived import Scaled
from convert.checkpoint.tensors import StoredTensor, Tensor
from convert.errors import InputError
from convert.files.dtypes import FLOATS
from convert.files.json_files import parse_json, require_object, shown

HINT = "Give the original in float16, bfloat16 or float32: its author or model page has it."
FORMATS = ("float8_e4m3fn", "float8_e5m2")
# How a layer is computed, which says nothing of its values.
HARMLESS = {"format", "full_precision_matrix_mult"}
LARGEST_NOTE = 1 << 16  # bytes of a layer's `comfy_quant`
SCALES = {"scale_weight", "weight_scale"}
HELPERS = {*SCALES, "scale_input", "input_scale", "comfy_quant"}
# The last part of a tensor's name that gives another kind away.
KINDS = {
    "absmax": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "bitsandbytes__nf4": "bitsandbytes",
    "bitsandbytes__fp4": "bitsandbytes",
    "SCB": "bitsandbytes",
    "qweight": "GPTQ, AWQ or SVDQuant",
    "qzeros": "GPTQ or AWQ",
    "wscales": "SVDQuant",
    "weight_scale_2": "nvfp4",
    "weight_packed": "compressed-tensors",
    "_data": "optimum-quanto",
    "_scale": "optimum-quanto",
}


def unscaled(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """A file's tensors without what belongs to their scales: weights that have one are `Scaled`.

    Args:
        tensors: all of the file, under the names that it has.
        metadata: of its header.
        path: the file.

    Raises:
        InputError: another kind of quantisation, a scale without its weight, or 8-bit weights of
            Linear layers without a scale in a file that has scales.
    """
    _refuse_others(tensors, path)
    layers = _formats(tensors, metadata, path)
    scales: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in SCALES and layer:
            scales[layer] = _require_scale(layer, tensor, tensors.get(f"{layer}.weight"))
    for layer in layers:
        if layer not in scales:
            raise _without_scale([f"{layer}.weight"], path)
    is_marked = bool(scales) or any(_last(name) == "scaled_fp8" for name in tensors)
    bare = [name for name, t in tensors.items() if is_marked and _wants_scale(name, t, scales)]
    if bare:
        raise _without_scale(bare, path)
    return {
        name: Scaled(tensor, scales[layer])
        if (layer := name.removesuffix(".weight")) != name and layer in scales
        else tensor
        for name, tensor in tensors.items()
        if not _is_helper(name)
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_helper(name: str) -> bool:
    return _last(name) == "scaled_fp8" or ("." in name and _last(name) in HELPERS)


def _wants_scale(name: str, tensor: Tensor, scales: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is the 8-bit weight of a Linear layer and has no scale."""
    layer = name.removesuffix(".weight")
    is_linear = layer != name and len(tensor.shape) == 2 and "embedding" not in _last(layer)
    return is_linear and tensor.dtype.startswith("F8_") and layer not in scales


def _require_scale(layer: str, scale: Tensor, weight: Tensor | None) -> Tensor:
    """The scale, if it is one number of a weight that is there."""
    if weight is None:
        raise InputError(
            f"tensor `{scale.name}` is the scale of `{layer}.weight`, which is not there",
            where=scale.path,
            hint="The file is incomplete: download it again.",
        )
    if weight.dtype not in FLOATS:
        raise _unreadable(f"{weight.dtype} weights with a scale", f"{layer}.weight", scale.path)
    if scale.size != 1 or scale.dtype not in FLOATS:
        what = f"a scale of {scale.dtype}{list(scale.shape)}, not one number,"
        raise _unreadable(what, f"{layer}.weight", scale.path)
    return scale


def _without_scale(names: list[str], path: Path) -> InputError:
    listed = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return InputError(
        f"marked as scaled fp8, but {len(names)} weight{'s lack their' * (len(names) > 1)}"
        f"{' lacks its' * (len(names) == 1)} scale: {listed}",
        where=path,
        hint="Without its scale a weight is wrong. Download the file again. " + HINT,
    )


def _formats(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> list[str]:
    """The layers that the file says are quantised, all of them as 8-bit floats with a scale."""
    found: dict[str, Any] = {}
    if "_quantization_metadata" in metadata:
        where = f"{path}: `_quantization_metadata`"
        document = require_object(parse_json(metadata["_quantization_metadata"], where), where)
        found |= require_object(document.get("layers", {}), where)
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "comfy_quant" and layer:
            is_note = tensor.dtype == "U8" and tensor.size <= LARGEST_NOTE
            if not isinstance(tensor, StoredTensor) or not is_note:
                kind = f"{tensor.dtype}{list(tensor.shape)}"
                raise InputError(f"tensor `{name}` is {kind}; JSON in U8 is expected", where=path)
            found[layer] = parse_json(tensor.codes().tobytes(), f"{path}: tensor `{name}`")
    for layer, settings in found.items():
        settings = require_object(settings, f"{path}: quantisation of `{layer}`")
        format_, others = settings.get("format"), sorted(settings.keys() - HARMLESS)
        if format_ not in FORMATS or others:
            known = isinstance(format_, str) and format_ not in FORMATS
            what = format_ if known else others[0] if others else shown(format_)
            raise _unreadable(f"quantised as {what}", layer, path)
    return list(found)


def _refuse_others(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name in tensors:
        if "." in name and (kind := KINDS.get(_last(name))):
            raise _unreadable(f"quantised by {kind}", name, path)


def _unreadable(what: str, name: str, path: Path) -> InputError:
    return InputError(f"{what} (`{name}`), which cannot be read", where=path, hint=HINT)
