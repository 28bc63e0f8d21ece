"""What shape an op gives, by the shapes that it takes: whether a program's types follow.

Told anew from the documentation of MIL's ops (coremltools, `ops/defs`), and not by coremltools,
which has declared the types that are checked here. Ops without a function are counted, and left
to the size map.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convert.checkpoint.checkpoint import Shape
from verify.equivalence.nodes import Difference, Node, OpGraph
from verify.mil import Constant


class Unfit(Exception):
    """The shapes that an op is given do not go together; says why."""


@dataclass(frozen=True)
class Shaped:
    """An op with the shapes of what it takes."""

    node: Node
    graph: OpGraph

    def shape(self, name: str = "x", index: int = 0) -> Shape:
        """The shape of an argument, wherever it is kept."""
        if name in self.node.arguments:
            return self.graph.type(self.node.arguments[name][index]).shape
        return self.node.attributes[name].type.shape

    def shapes(self, name: str = "values") -> list[Shape]:
        """The shapes of all values of an argument."""
        return [self.graph.type(value).shape for value in self.node.arguments[name]]

    def has(self, name: str) -> bool:
        """Whether an argument is given."""
        return name in self.node.arguments or name in self.node.attributes

    def value(self, name: str, default: Any = None) -> Any:
        """A constant argument."""
        if not self.has(name):
            return default
        constant: Constant | None = self.node.value(name)
        if constant is None:
            raise Unfit(f"`{name}` is no constant")
        return constant.item()


def false_types(graph: OpGraph) -> tuple[list[Difference], Counter[str]]:
    """The ops whose declared shapes are not what they make of their inputs'.

    Returns:
        the differences, and how many ops of which types nothing is said of.
    """
    found: list[Difference] = []
    unknown: Counter[str] = Counter()
    for node in graph.nodes:
        function = FUNCTIONS.get(node.type)
        if function is None:
            unknown[node.type] += 1
            continue
        declared = [type_.shape for type_ in node.outputs]
        try:
            result = function(Shaped(node, graph))
        except Unfit as error:
            found.append(Difference("types", str(node), str(error)))
            continue
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            found.append(Difference("types", str(node), "its arguments do not go together"))
            continue
        shapes = result if isinstance(result, list) else [result]
        if shapes != declared:
            text = f"gives {_shown(shapes)}, and declares {_shown(declared)}"
            found.append(Difference("types", str(node), text))
    return found, unknown


def _shown(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


FUNCTIONS: dict[str, Callable[[Shaped], Shape | list[Shape]]] = {}


def _op(*types: str) -> Callable[[Callable[[Shaped], Any]], Callable[[Shaped], Any]]:
    def register(function: Callable[[Shaped], Any]) -> Callable[[Shaped], Any]:
        FUNCTIONS.update(dict.fromkeys(types, function))
        return function

    return register


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Unfit(f"has axis {axis} of {rank}")
    return axis % rank


def broadcast(*shapes: Shape) -> Shape:
    """The shape of several together; raises Unfit where they do not go together."""
    rank = max(map(len, shapes))
    out = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        found = set(sizes) - {1}
        if len(found) > 1:
            raise Unfit(f"takes {_shown(shapes)} together")
        out.append(found.pop() if found else 1)
    return tuple(out)


@_op("cast", "identity", "silu", "gelu", "relu", "sigmoid", "tanh", "exp", "sin", "cos", "sqrt",
     "rsqrt", "square", "softmax")  # fmt: skip
def _same(call: Shaped) -> Shape:
    if call.has("axis"):
        _axis(call.value("axis"), len(call.shape()))
    return call.shape()


@_op("add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "equal", "greater_equal")
def _binary(call: Shaped) -> Shape:
    return broadcast(call.shape("x"), call.shape("y"))


@_op("select")
def _select(call: Shaped) -> Shape:
    return broadcast(call.shape("cond"), call.shape("a"), call.shape("b"))


@_op("layer_norm", "batch_norm")
def _norm(call: Shaped) -> Shape:
    x = call.shape()
    axes = call.value("axes", [1])
    wanted = tuple(x[_axis(axis, len(x))] for axis in axes)
    for name in ("gamma", "beta", "mean", "variance"):
        if call.has(name) and call.shape(name) != wanted:
            raise Unfit(f"`{name}` is {list(call.shape(name))}, its input has {list(wanted)}")
    return x


@_op("reduce_mean", "reduce_sum", "reduce_max", "reduce_min")
def _reduce(call: Shaped) -> Shape:
    return _without(call.shape(), call.value("axes"), call.value("keep_dims", False))


@_op("reduce_argmax")
def _argmax(call: Shaped) -> Shape:
    return _without(call.shape(), [call.value("axis", -1)], call.value("keep_dims", True))


def _without(x: Shape, axes: Sequence[int] | None, keep: bool) -> Shape:
    gone = {_axis(a, len(x)) for a in (range(len(x)) if axes is None else axes)}
    sizes = ((1 if i in gone else size, i in gone) for i, size in enumerate(x))
    return tuple(size for size, is_gone in sizes if keep or not is_gone)


@_op("reshape")
def _reshape(call: Shaped) -> Shape:
    x = call.shape()
    shape = [x[i] if size == 0 else size for i, size in enumerate(call.value("shape"))]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and math.prod(x) % known == 0:
        shape[shape.index(-1)] = math.prod(x) // known
    if math.prod(shape) != math.prod(x) or min(shape, default=1) < 0:
        raise Unfit(f"makes {list(x)} into {call.value('shape')}")
    return tuple(shape)


@_op("transpose")
def _transpose(call: Shaped) -> Shape:
    x, perm = call.shape(), call.value("perm")
    axes = [_axis(axis, len(x)) for axis in perm]
    if sorted(axes) != list(range(len(x))):
        raise Unfit(f"has the permutation {perm} of {len(x)} axes")
    return tuple(x[axis] for axis in axes)


@_op("expand_dims")
def _expand(call: Shaped) -> Shape:
    out = list(call.shape())
    rank = len(out) + len(call.value("axes"))
    for axis in sorted(_axis(axis, rank) for axis in call.value("axes")):
        out.insert(axis, 1)
    return tuple(out)


@_op("stack")
def _stack(call: Shaped) -> Shape:
    first, *more = call.shapes()
    if any(shape != first for shape in more):
        raise Unfit(f"stacks {_shown([first, *more])}")
    axis = _axis(call.value("axis"), len(first) + 1)
    return (*first[:axis], 1 + len(more), *first[axis:])


@_op("concat")
def _concat(call: Shaped) -> Shape:
    shapes = call.shapes()
    axis = _axis(call.value("axis"), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) > 1:
        raise Unfit(f"joins {_shown(shapes)} along axis {axis}")
    total = sum(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


@_op("split")
def _split(call: Shaped) -> list[Shape]:
    x, count = call.shape(), len(call.node.outputs)
    axis = _axis(call.value("axis"), len(x))
    sizes = call.value("split_sizes") or [x[axis] // call.value("num_splits", count)] * count
    if sum(sizes) != x[axis]:
        raise Unfit(f"splits {x[axis]} into {sizes}")
    return [(*x[:axis], size, *x[axis + 1 :]) for size in sizes]


@_op("slice_by_index")
def _slice(call: Shaped) -> Shape:
    x = call.shape()
    begin, end = call.value("begin"), call.value("end")
    none = [False] * len(x)
    strides = call.value("stride", [1] * len(x))
    masks = (call.value(f"{name}_mask", none) for name in ("begin", "end", "squeeze"))
    out = []
    for size, first, last, step, from_start, to_end, squeezed in zip(
        x, begin, end, strides, *masks, strict=True
    ):
        if squeezed:
            continue
        low, high = 0 if from_start else first, size if to_end else last
        low, high = (n + size if n < 0 else n for n in (low, high))
        if step < 1 or not 0 <= low < high <= size:
            raise Unfit(f"takes {low} to {high} of {size}")
        out.append(-(-(high - low) // step))
    return tuple(out)


@_op("pad")
def _pad(call: Shaped) -> Shape:
    x, pad = call.shape(), call.value("pad")
    pads = [0] * (2 * len(x) - len(pad)) + list(pad)
    return tuple(size + pads[2 * i] + pads[2 * i + 1] for i, size in enumerate(x))


@_op("upsample_nearest_neighbor", "upsample_bilinear")
def _upsample(call: Shaped) -> Shape:
    *rest, height, width = call.shape()
    factors = (call.value(f"scale_factor_{side}", 1) for side in ("height", "width"))
    return (*rest, *(int(size * f) for size, f in zip((height, width), factors, strict=True)))


@_op("conv")
def _conv(call: Shaped) -> Shape:
    (batch, channels, *space), weight = call.shape(), call.shape("weight")
    groups, kernel = call.value("groups", 1), weight[2:]
    if channels != weight[1] * groups or len(kernel) != len(space):
        raise Unfit(f"takes {list(call.shape())} with a weight of {list(weight)}")
    if call.has("bias") and call.shape("bias") != weight[:1]:
        raise Unfit(f"has a bias of {list(call.shape('bias'))} for {weight[0]} channels")
    ones = [1] * len(space)
    strides, dilations = call.value("strides", ones), call.value("dilations", ones)
    pads = call.value("pad", [0] * 2 * len(space))
    if (kind := call.value("pad_type", "valid")) not in ("valid", "custom"):
        raise Unfit(f"has the padding `{kind}`, which is not known here")
    out = []
    for i, size in enumerate(space):
        padded = size + (pads[2 * i] + pads[2 * i + 1] if kind == "custom" else 0)
        reach = dilations[i] * (kernel[i] - 1) + 1
        out.append((padded - reach) // strides[i] + 1)
    return (batch, weight[0], *out)


@_op("linear")
def _linear(call: Shaped) -> Shape:
    x, weight = call.shape(), call.shape("weight")
    if x[-1] != weight[1]:
        raise Unfit(f"takes {list(x)} with a weight of {list(weight)}")
    if call.has("bias") and call.shape("bias") != weight[:1]:
        raise Unfit(f"has a bias of {list(call.shape('bias'))} for {weight[0]} features")
    return (*x[:-1], weight[0])


@_op("matmul")
def _matmul(call: Shaped) -> Shape:
    x, y = call.shape("x"), call.shape("y")
    rows, inner = x[-2:][::-1] if call.value("transpose_x", False) else x[-2:]
    other, columns = y[-2:][::-1] if call.value("transpose_y", False) else y[-2:]
    if inner != other:
        raise Unfit(f"multiplies {list(x)} by {list(y)}")
    return (*broadcast(x[:-2], y[:-2]), rows, columns)


@_op("einsum")
def _einsum(call: Shaped) -> Shape:
    terms, result = call.value("equation").replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    for letters, shape in zip(terms.split(","), call.shapes(), strict=True):
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise Unfit(f"takes {_shown(call.shapes())}, in which {letter} has two sizes")
    return tuple(sizes[letter] for letter in result)


@_op("gather")
def _gather(call: Shaped) -> Shape:
    x, indices = call.shape(), call.shape("indices")
    axis = _axis(call.value("axis", 0), len(x))
    if call.value("batch_dims", 0):
        raise Unfit("gathers by batch, which is not known here")
    return (*x[:axis], *indices, *x[axis + 1 :])


@_op("gather_nd")
def _gather_nd(call: Shaped) -> Shape:
    x, indices = call.shape(), call.shape("indices")
    if call.value("batch_dims", 0):
        raise Unfit("gathers by batch, which is not known here")
    return (*indices[:-1], *x[indices[-1] :])


@_op("constexpr_lut_to_dense")
def _palette(call: Shaped) -> Shape:
    if not call.has("shape"):  # since iOS 18
        return call.shape("indices")
    shape = tuple(call.value("shape"))
    (entries,) = call.shape("lut")
    if call.shape("indices") != (-(-math.prod(shape) * (entries.bit_length() - 1) // 8),):
        raise Unfit(f"has {list(call.shape('indices'))} bytes of indices for {list(shape)}")
    return shape


@_op("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale")
def _integers(call: Shaped) -> Shape:
    return call.shape("quantized_data" if call.has("quantized_data") else "data")
