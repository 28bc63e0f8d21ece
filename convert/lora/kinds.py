"""The kinds of LoRA: of which tensors each is made, what fits a weight, and what it does to it.

Names of tensors are those that `suffixes.ROLES` gives them, and the formulas are in `formulas`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from convert.checkpoint.checkpoint import Shape
from convert.lora.adapter import OF_INPUTS, LoraAdapter, columns
from convert.lora.fits import (
    fit_glora,
    fit_ia3,
    fit_loha,
    fit_lokr,
    fit_lora,
    fit_rotation,
    glora_is_old,
    is_of_outputs,
    require,
)
from convert.lora.formulas import (
    Add,
    Butterfly,
    Decompose,
    Delta,
    Generalized,
    Hadamard,
    Kronecker,
    LowRank,
    Operation,
    Replace,
    Rotate,
    RowReader,
    Scale,
    Stored,
    rotations,
)


@dataclass(frozen=True)
class Kind:
    """One kind: the tensors that it must and may have, and its functions."""

    title: str
    required: frozenset[str]
    optional: frozenset[str]
    fit: Callable[[LoraAdapter, Shape], None]
    load: Callable[[LoraAdapter, Shape, float], Operation]
    rank: Callable[[LoraAdapter], int | None] = lambda adapter: None  # what alpha is divided by
    is_whole: bool = False  # a tensor of the weight's own size
    is_of_bias: bool = False


def require_fit(adapter: LoraAdapter, shape: Shape) -> None:
    """Raises Misfit unless an adapter can change a weight of this shape."""
    kind = KINDS[adapter.kind]
    require(kind.is_whole or len(shape) > 1, adapter, shape, *adapter.tensors)
    kind.fit(adapter, shape)
    if adapter.magnitude is not None:
        is_of_outputs(adapter, shape)


def load(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
    """The operation on a weight of this shape, which it fits; its small tensors are read."""
    return KINDS[adapter.kind].load(adapter, shape, strength)


def title(adapter: LoraAdapter) -> str:
    """What people call the adapter's kind."""
    name = KINDS[adapter.kind].title
    if adapter.tensors.keys() & {"mid", "hada_t1", "lokr_t2", "bm"}:
        name = f"{name} (Tucker)"
    if adapter.magnitude is None:
        return name
    return "DoRA" if name == "LoRA" else f"{name} (DoRA)"


# LoRA, LoHa, LoKr: a Δ of small matrices, to add or for DoRA


def _core(adapter: LoraAdapter, core: str, inputs: np.ndarray) -> np.ndarray:
    """Σ_q core[p, q, …] · inputs[q, i] as [p, i · kernel]."""
    t = adapter.tensors[core].read(np.float32)
    mixed = np.tensordot(t, inputs, axes=(1, 0))  # [p, kernel…, i]
    return np.ascontiguousarray(np.moveaxis(mixed, -1, 1)).reshape(len(t), -1)


def _lora(adapter: LoraAdapter, shape: Shape, factor: float) -> Delta:
    up, down = adapter.matrix("up"), adapter.matrix("down")
    if "mid" in adapter.tensors:
        down = _core(adapter, "mid", down)
    return LowRank(up * np.float32(factor), down)


def _factor(adapter: LoraAdapter, a: str, b: str, core: str) -> LowRank:
    """The product of two matrices, or of three with a core, whose `a` is then turned over."""
    one, other = adapter.matrix(a), adapter.matrix(b)
    if core in adapter.tensors:
        return LowRank(np.ascontiguousarray(one.T), _core(adapter, core, other))
    return LowRank(one, other)


def _loha(adapter: LoraAdapter, shape: Shape, factor: float) -> Delta:
    one = _factor(adapter, "hada_w1_a", "hada_w1_b", "hada_t1")
    other = _factor(adapter, "hada_w2_a", "hada_w2_b", "hada_t2")
    return Hadamard(one, other, factor)


def _lokr(adapter: LoraAdapter, shape: Shape, factor: float) -> Delta:
    has = adapter.tensors.__contains__
    one = adapter.matrix("lokr_w1") if has("lokr_w1") else None
    if one is None:
        one = adapter.matrix("lokr_w1_a") @ adapter.matrix("lokr_w1_b")
    if has("lokr_w2"):
        return Kronecker(one, adapter.matrix("lokr_w2"), factor)
    return Kronecker(one, _factor(adapter, "lokr_w2_a", "lokr_w2_b", "lokr_t2"), factor)


def _lokr_rank(adapter: LoraAdapter) -> int | None:
    for role in ("lokr_w2_b", "lokr_w1_b"):
        if role in adapter.tensors:
            return adapter.shape(role)[0]
    return None  # both are whole: alpha means nothing


def _added(
    delta: Callable[[LoraAdapter, Shape, float], Delta],
) -> Callable[[LoraAdapter, Shape, float], Operation]:
    def loaded(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
        magnitude = adapter.magnitude
        if magnitude is None:
            return Add(delta(adapter, shape, strength * adapter.scale))
        values = magnitude.read(np.float32).reshape(-1)
        of_outputs = is_of_outputs(adapter, shape)
        return Decompose(delta(adapter, shape, adapter.scale), values, strength, of_outputs)

    return loaded


# GLoRA


def _load_glora(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
    names = ["a1", "a2", "b1", "b2"]
    if glora_is_old(adapter, shape):
        names = ["a2", "a1", "b2", "b1"]
    a1, a2, b1, b2 = map(adapter.matrix, names)
    if "bm" in adapter.tensors:
        b2 = _core(adapter, "bm", b2)
    return Add(Generalized(a1, a2, LowRank(b1, b2), strength * adapter.scale))


def _glora_rank(adapter: LoraAdapter) -> int:
    return min(adapter.shape("a1")[0], adapter.shape("a2")[0])


# (IA)³


def _load_ia3(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
    factors = 1 + np.float32(strength) * adapter.tensors["factors"].read(np.float32).reshape(-1)
    if adapter.kind == OF_INPUTS:
        return Scale(np.repeat(factors, math.prod(shape[2:])), is_of_rows=False)
    return Scale(factors[:, None], is_of_rows=True)


# OFT and BOFT


def _load_rotation(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
    blocks = adapter.tensors["oft_blocks"].read(np.float32)
    identity = np.eye(blocks.shape[-1], dtype=np.float32)
    turned = identity + np.float32(strength) * (
        rotations(blocks, adapter.scale * shape[0]) - identity
    )
    rescale = adapter.matrix("rescale").reshape(-1, 1) if "rescale" in adapter.tensors else None
    return Rotate(turned, rescale) if blocks.ndim == 3 else Butterfly(turned, rescale)


# a tensor as large as the weight


def _whole(
    title: str, role: str, *, is_of_bias: bool = False, replaces: bool = False, more: str = ""
) -> Kind:
    def fit(adapter: LoraAdapter, shape: Shape) -> None:
        require(math.prod(adapter.shape(role)) == math.prod(shape), adapter, shape, role)

    def loaded(adapter: LoraAdapter, shape: Shape, strength: float) -> Operation:
        reader = RowReader(adapter.tensors[role], columns(shape))
        return Replace(reader) if replaces else Add(Stored(reader, strength * adapter.scale))

    required = frozenset({role})
    optional = frozenset(more.split())
    return Kind(title, required, optional, fit, loaded, is_whole=True, is_of_bias=is_of_bias)


def _kind(
    title: str,
    required: str,
    optional: str,
    fit: Callable[[LoraAdapter, Shape], None],
    load: Callable[[LoraAdapter, Shape, float], Operation],
    rank: Callable[[LoraAdapter], int | None] = lambda adapter: None,
) -> Kind:
    return Kind(title, frozenset(required.split()), frozenset(optional.split()), fit, load, rank)


_DORA = "alpha dora_scale"
_LOKR = {
    f"lokr_{one}_{other}": _kind(
        "LoKr",
        " ".join(f"lokr_{part}" for part in (*first, *second)),
        _DORA,
        fit_lokr,
        _added(_lokr),
        _lokr_rank,
    )
    for one, first in {"whole": ["w1"], "parts": ["w1_a", "w1_b"]}.items()
    for other, second in {
        "whole": ["w2"],
        "parts": ["w2_a", "w2_b"],
        "core": ["w2_a", "w2_b", "t2"],
    }.items()
}
_HADA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
_LOHA = (fit_loha, _added(_loha), lambda adapter: adapter.shape("hada_w1_b")[0])
KINDS: Mapping[str, Kind] = {
    "lora": _kind(
        "LoRA",
        "up down",
        f"mid magnitude {_DORA}",
        fit_lora,
        _added(_lora),
        lambda adapter: adapter.shape("down")[0],
    ),
    "loha": _kind("LoHa", _HADA, _DORA, *_LOHA),
    "loha_core": _kind("LoHa", f"{_HADA} hada_t1 hada_t2", _DORA, *_LOHA),
    **_LOKR,
    "ia3": _kind("(IA)³", "factors on_input", "", fit_ia3, _load_ia3),
    OF_INPUTS: _kind("(IA)³", "factors on_input", "", fit_ia3, _load_ia3),
    "glora": _kind("GLoRA", "a1 a2 b1 b2", "bm alpha", fit_glora, _load_glora, _glora_rank),
    "oft": _kind("OFT", "oft_blocks", "rescale alpha", fit_rotation, _load_rotation),
    "boft": _kind("BOFT", "oft_blocks", "rescale alpha", fit_rotation, _load_rotation),
    "diff": _whole("difference", "diff", more="alpha"),
    "norm": _whole("norm", "w_norm"),
    "set": _whole("replacement", "set_weight", replaces=True),
    "diff_b": _whole("bias", "diff_b", is_of_bias=True),
    "b_norm": _whole("norm's bias", "b_norm", is_of_bias=True),
    "bias": _whole("bias", "bias", is_of_bias=True),
}
