"""Whether a LoRA's tensors fit each other and the weight that they are for, by their shapes."""

from __future__ import annotations

import math

from convert.checkpoint.checkpoint import Shape
from convert.lora.adapter import OF_INPUTS, ROTATIONS, LoraAdapter, columns


class Misfit(Exception):
    """Tensors whose shapes contradict each other, or the weight's; says which."""


def require(is_fit: bool, adapter: LoraAdapter, shape: Shape, *roles: str) -> None:
    """Raises Misfit, with the shapes of these tensors, unless they fit."""
    if not is_fit:
        mine = ", ".join(f"{role} {list(adapter.shape(role))}" for role in roles)
        raise Misfit(f"{mine} for a weight {list(shape)}")


def is_of_outputs(adapter: LoraAdapter, shape: Shape) -> bool:
    """Whether DoRA's magnitudes are those of outputs, not of inputs; raises Misfit for neither."""
    if "magnitude" in adapter.tensors:  # PEFT's are
        require(math.prod(adapter.shape("magnitude")) == shape[0], adapter, shape, "magnitude")
        return True
    found = adapter.shape("dora_scale")
    if found[:1] == shape[:1] and math.prod(found) == shape[0]:
        return True
    is_of_inputs = found[:1] == (1,) and math.prod(found) == shape[1]
    require(is_of_inputs, adapter, shape, "dora_scale")
    return False


def _is_core(core: Shape, ranks: tuple[int, int], shape: Shape) -> bool:
    return core[:2] == ranks and core[2:] == shape[2:]


def fit_lora(adapter: LoraAdapter, shape: Shape) -> None:
    """LoRA and LoCon, with and without a core."""
    mid, (outputs, rank) = adapter.shape("mid"), adapter.sizes("up")
    inner, width = adapter.sizes("down")
    if "mid" in adapter.tensors:
        fits = (outputs, width) == shape[:2] and _is_core(mid, (rank, inner), shape)
        return require(fits, adapter, shape, "up", "mid", "down")
    fits = (outputs, rank, width) == (shape[0], inner, columns(shape))
    down = adapter.shape("down")
    fits &= len(down) < 4 or len(shape) < 4 or down[1:] == shape[1:]
    return require(fits, adapter, shape, "up", "down")


def fit_loha(adapter: LoraAdapter, shape: Shape) -> None:
    """LoHa, whose two products have the size of the weight."""
    for a, b, core in (
        ("hada_w1_a", "hada_w1_b", "hada_t1"),
        ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ):
        fits = _product(adapter, a, b, core, shape) == (shape[0], columns(shape))
        require(fits, adapter, shape, a, b, *([core] if core in adapter.tensors else []))


def _product(
    adapter: LoraAdapter, a: str, b: str, core: str, shape: Shape
) -> tuple[int, int] | None:
    """The size of the matrix that these tensors make; None if its parts do not fit each other."""
    one, other = adapter.sizes(a), adapter.sizes(b)
    if core in adapter.tensors:
        if not _is_core(adapter.shape(core), (one[0], other[0]), shape):
            return None
        return one[1], other[1] * math.prod(shape[2:])
    return (one[0], other[1]) if one[1] == other[0] else None


def fit_lokr(adapter: LoraAdapter, shape: Shape) -> None:
    """LoKr, whose product of Kronecker has it."""
    one: tuple[int, int] | None = adapter.sizes("lokr_w1")
    if "lokr_w1" not in adapter.tensors:
        one = _product(adapter, "lokr_w1_a", "lokr_w1_b", "", shape)
    other: tuple[int, int] | None = adapter.sizes("lokr_w2")
    if "lokr_w2" not in adapter.tensors:
        other = _product(adapter, "lokr_w2_a", "lokr_w2_b", "lokr_t2", shape)
    w2 = adapter.shape("lokr_w2")
    fits = one is not None and other is not None and (len(w2) < 4 or w2[2:] == shape[2:])
    sizes = one and other and (one[0] * other[0], one[1] * other[1])
    require(fits and sizes == (shape[0], columns(shape)), adapter, shape, *adapter.tensors)


def glora_is_old(adapter: LoraAdapter, shape: Shape) -> bool:
    """Whether the names are those of older files, where each pair is the other way round."""

    def fits(a1: str, a2: str, b1: str, b2: str) -> bool:
        a_rank, b_rank = adapter.sizes(a2)[0], adapter.sizes(b2)[0]
        width = shape[1] if core else columns(shape)
        wanted = [(shape[1], a_rank), (a_rank, shape[1]), (shape[0], b_rank), (b_rank, width)]
        sizes = [adapter.sizes(name) for name in (a1, a2, b1, b2)]
        return sizes == wanted and (not core or _is_core(core, (b_rank, b_rank), shape))

    core = adapter.shape("bm")
    if fits("a1", "a2", "b1", "b2"):
        return False
    require(fits("a2", "a1", "b2", "b1"), adapter, shape, "a1", "a2", "b1", "b2")
    return True


def fit_glora(adapter: LoraAdapter, shape: Shape) -> None:
    """GLoRA, in the order of new files or of old ones."""
    glora_is_old(adapter, shape)


def fit_ia3(adapter: LoraAdapter, shape: Shape) -> None:
    """(IA)³, a factor for each output or input."""
    wanted = shape[1] if adapter.kind == OF_INPUTS else shape[0]
    require(math.prod(adapter.shape("factors")) == wanted, adapter, shape, "factors")


def fit_rotation(adapter: LoraAdapter, shape: Shape) -> None:
    """OFT, whose blocks have all outputs, and BOFT, whose stages can pair them."""
    blocks, rescale = adapter.shape("oft_blocks"), adapter.shape("rescale")
    *stages, count, size, other = blocks
    fits = size == other and count * size == shape[0] and len(blocks) == ROTATIONS[adapter.kind]
    fits &= not rescale or math.prod(rescale) == shape[0]
    if stages:  # the farthest pairs must lie in the weight
        fits = fits and size % 2 == 0 and shape[0] % (size << (stages[0] - 1)) == 0
    require(fits, adapter, shape, "oft_blocks", *(["rescale"] if rescale else []))
