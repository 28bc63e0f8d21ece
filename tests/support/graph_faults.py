"""Faults of graphs, planted into a package's protobuf; its weight file and its types stay.

Each is a function of a `Spoiled` model, which it changes, and returns the name of the op that is
wrong then; or None where the network has no place for such a fault, and nothing is changed. What
stands at several places is changed at one in the middle of the network, or at a random one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from convert.package.mlpackage import MODEL
from tests.support.packages import edit_model, operations

Fault = Callable[["Spoiled"], str | None]


def plant(package: Path, fault: Fault, random: Random | None = None) -> str | None:
    """Plant a fault into a package; the name of the op that is wrong, or None."""
    names: list[str | None] = []
    edit_model(package, lambda model: names.append(fault(Spoiled(model, random))))
    return names[0]


def exchange_graph(package: Path, other: Path) -> None:
    """Give a package the graph of another one, and leave it its weights."""
    content = (other / MODEL).read_bytes()
    (package / MODEL).unlink()
    (package / MODEL).write_bytes(content)


# ---- what is in a model ----


class Spoiled:
    """A `Model` message that is to be changed, with what it had before the first change."""

    def __init__(self, model: Any, random: Random | None = None) -> None:
        self.model, self.random = model, random
        self.operations = operations(model)
        self.producers = {o.name: op for op in self.operations for o in op.outputs}
        self.types = {
            o.name: o.type.SerializeToString(deterministic=True)
            for op in self.operations
            for o in op.outputs
        }

    def of_type(self, *types: str) -> list[Any]:
        """The ops of these types, in order."""
        return [op for op in self.operations if op.type in types]

    def one(self, found: list[Any]) -> Any | None:
        """The one in the middle, or any one of them; None of none."""
        if self.random is not None and found:
            return self.random.choice(found)
        return found[len(found) // 2] if found else None

    def maker(self, op: Any, parameter: str, index: int = 0) -> Any | None:
        """The op that makes what another takes; None of the function's inputs."""
        return self.producers.get(taken(op, parameter, index))

    def value(self, op: Any, parameter: str) -> np.ndarray | None:
        """A constant argument that is written in the program."""
        const = self.maker(op, parameter)
        if const is None or const.type != "const":
            return None
        value = const.attributes["val"]
        if value.WhichOneof("value") != "immediateValue":
            return None
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        if kind == "bytes":
            return np.frombuffer(tensor.bytes.values, np.float16).reshape(shape).copy()
        dtypes = {"floats": np.float32, "ints": np.int32, "bools": np.bool_}
        if kind not in dtypes:
            return None
        return np.array(list(getattr(tensor, kind).values), dtypes[kind]).reshape(shape)

    def set_value(self, op: Any, parameter: str, value: np.ndarray) -> None:
        """Give one op an argument of its own in place of a constant that others may share."""
        const = self.producers[taken(op, parameter)]
        fresh = type(const).FromString(const.SerializeToString())
        name, owner = f"{named(op)}_{parameter}_planted", named(op)
        fresh.outputs[0].name = name
        rename(fresh, name)
        tensor = fresh.attributes["val"].immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "bytes":
            tensor.bytes.values = value.astype(np.float16).tobytes()
        else:
            values = getattr(tensor, kind).values
            del values[:]
            values.extend(np.asarray(value).reshape(-1).tolist())
        self.insert(fresh, before=owner)
        self.find(owner).inputs[parameter].arguments[0].name = name

    def find(self, name: str) -> Any:
        """The op of a name; those that were found before a change are no longer part of it."""
        return next(op for op in self.operations if op.type != "const" and named(op) == name)

    def insert(self, fresh: Any, *, before: str) -> None:
        """Put an op before the one of a name."""
        at = next(i for i, op in enumerate(self.operations) if named(op) == before)
        rest = [type(op).FromString(op.SerializeToString()) for op in self.operations[at:]]
        del self.operations[at:]
        self.operations.extend([fresh, *rest])

    def slices(self) -> Iterator[tuple[Any, int, np.ndarray, np.ndarray]]:
        """Slices with the last axis that they cut, where they begin and where they end."""
        for op in self.of_type("slice_by_index"):
            mask, begin, end = (self.value(op, n) for n in ("end_mask", "begin", "end"))
            if mask is not None and begin is not None and end is not None and not mask.all():
                yield op, int(np.flatnonzero(~mask)[-1]), begin, end


def named(op: Any) -> str:
    """The name of an op."""
    return str(op.attributes["name"].immediateValue.tensor.strings.values[0])


def rename(op: Any, name: str) -> None:
    op.attributes["name"].immediateValue.tensor.strings.values[0] = name


def taken(op: Any, parameter: str, index: int = 0) -> str:
    """The name of what an op takes; empty if it takes none."""
    if parameter not in op.inputs or index >= len(op.inputs[parameter].arguments):
        return ""
    return str(op.inputs[parameter].arguments[index].name)


# ---- the faults of a graph ----


def residual_from_another_op(model: Spoiled) -> str | None:
    """A residual is added that another op has made, of the same type."""
    makers = [(op, model.maker(op, "x"), model.maker(op, "y")) for op in model.of_type("add")]
    adds = [o for o, *both in makers if all(m is not None and m.type != "const" for m in both)]
    op = model.one(adds)
    if op is None:
        return None
    wanted = model.types[taken(op, "y")]
    name = named(op)
    for other in model.operations:
        if named(other) == name:
            return None
        if other.type == "const" or other.type.startswith("constexpr_"):
            continue
        for output in other.outputs:
            is_alike = model.types[output.name] == wanted
            if is_alike and output.name not in (taken(op, "x"), taken(op, "y")):
                op.inputs["y"].arguments[0].name = output.name
                return name
    return None


def slice_shifted(model: Spoiled) -> str | None:
    """A slice begins and ends one further."""
    inner = [s for s in model.slices() if s[2][s[1]] == 0 and s[1] != 2]
    found = model.one(inner)
    if found is None:
        return None
    op, axis, begin, end = found
    name = named(op)
    begin[axis] += 1
    end[axis] += 1
    model.set_value(op, "begin", begin)
    model.set_value(model.find(name), "end", end)
    return name


def end_too_short(model: Spoiled) -> str | None:
    """A slice ends one before where it should."""
    found = model.one(list(model.slices()))
    if found is None:
        return None
    op, axis, _, end = found
    end[axis] -= 1
    model.set_value(op, "end", end)
    return named(op)


def height_and_width_exchanged(model: Spoiled) -> str | None:
    """A reshape makes of H x W a picture of W x H; its declared type stays."""
    found = [
        (op, shape)
        for op in model.of_type("reshape")
        if (shape := model.value(op, "shape")) is not None
        and len(shape) > 3
        and shape[-1] != shape[-2]
        and 1 not in shape[-2:]
        and (maker := model.maker(op, "x")) is not None
        and shape[-2] in _space(maker)
    ]
    place = model.one(found)
    if place is None:
        return None
    op, shape = place
    shape[[-1, -2]] = shape[[-2, -1]]
    model.set_value(op, "shape", shape)
    return named(op)


def _space(op: Any) -> list[int]:
    return [d.constant.size for d in op.outputs[0].type.tensorType.dimensions][2:]


def heads_exchanged(model: Spoiled) -> str | None:
    """Keys and values change places, or where heads are apart, the values of two heads."""
    softmaxes = {output.name for op in model.of_type("softmax") for output in op.outputs}
    weighed = [op for op in model.of_type("einsum") if taken(op, "values", 1) in softmaxes]
    pairs = [
        (one, other)
        for one, other in pairwise(weighed)
        if model.types[taken(one, "values")] == model.types[taken(other, "values")]
        and taken(one, "values") != taken(other, "values")
    ]
    if (pair := model.one(pairs)) is not None:
        one, other = (op.inputs["values"].arguments[0] for op in pair)
        one.name, other.name = other.name, one.name
        return named(pair[0])
    products = model.of_type("matmul")
    attentions = list(zip(products[::2], products[1::2], strict=False))
    if (attention := model.one(attentions)) is None:
        return None
    scores, result = attention
    values = "x" if taken(result, "y") in softmaxes else "y"
    key, value = scores.inputs["y"].arguments[0], result.inputs[values].arguments[0]
    if model.types[key.name] != model.types[value.name]:
        return None
    key.name, value.name = value.name, key.name
    return named(scores)


def another_epsilon(model: Spoiled) -> str | None:
    """A norm divides by the root of a variance and something more than it should."""
    op = model.one([op for op in model.of_type("layer_norm", "batch_norm")])
    epsilon = None if op is None else model.value(op, "epsilon")
    if op is None or epsilon is None:
        return None
    model.set_value(op, "epsilon", epsilon * 10)
    return named(op)


def another_scale(model: Spoiled) -> str | None:
    """Queries times keys, times 1.1 of what it should be."""
    scales = []
    for softmax in model.of_type("softmax"):
        op = model.maker(softmax, "x")
        while op is not None and op.type in ("add", "matmul", "einsum", "transpose", "reshape"):
            op = model.maker(op, "x") or model.maker(op, "values", 1)
        if op is not None and op.type == "mul" and model.value(op, "y") is not None:
            scales.append(op)
    op = model.one(scales)
    if op is None:
        return None
    scale = model.value(op, "y")
    assert scale is not None
    model.set_value(op, "y", scale * 1.1)
    return named(op)


def another_upsampling(model: Spoiled) -> str | None:
    """Bilinear where the nearest neighbour is meant."""
    op = model.one(model.of_type("upsample_nearest_neighbor"))
    if op is None:
        return None
    op.type = "upsample_bilinear"
    return named(op)


def another_factor(model: Spoiled) -> str | None:
    """Upsampling by three."""
    op = model.one(model.of_type("upsample_nearest_neighbor"))
    if op is None:
        return None
    model.set_value(op, "scale_factor_width", np.float32([3]))
    return named(op)


def transposed(model: Spoiled) -> str | None:
    """A matmul transposes its first factor where it should not, or the other way."""
    op = model.one(model.of_type("matmul"))
    if op is None:
        return None
    flag = model.value(op, "transpose_x")
    assert flag is not None
    model.set_value(op, "transpose_x", ~flag)
    return named(op)


def _op_more(model: Spoiled, kind: str) -> str | None:
    op = model.one(model.of_type("silu", "gelu")) or model.one(model.of_type("conv", "linear"))
    if op is None:
        return None
    name, source = f"{named(op)}_planted", taken(op, "x")
    maker = model.producers.get(source)
    if maker is None:
        return None
    (type_,) = (o.type for o in maker.outputs if o.name == source)
    fresh = type(op)()
    fresh.type = kind
    fresh.inputs["x"].arguments.add(name=source)
    fresh.outputs.add(name=name, type=type_)
    fresh.attributes["name"].CopyFrom(op.attributes["name"])
    rename(fresh, name)
    op.inputs["x"].arguments[0].name = name
    model.insert(fresh, before=named(op))
    return name


def op_that_does_nothing(model: Spoiled) -> str | None:
    """An `identity` between two ops."""
    return _op_more(model, "identity")


def op_that_does_little(model: Spoiled) -> str | None:
    """One more activation between two ops."""
    return _op_more(model, "relu")


def constant_of_ours(model: Spoiled) -> str | None:
    """A number that is no weight, one step of its precision further: frequencies first of all."""
    found = []
    for op in model.operations:
        for parameter in ("y", "x"):
            value = model.value(op, parameter) if op.type != "const" else None
            if value is not None and value.dtype.kind == "f":
                found.append((value.size, op, parameter, value))
    if not found:
        return None
    _, op, parameter, value = max(found, key=lambda f: f[0])
    value.reshape(-1)[-1] = np.nextafter(value.reshape(-1)[-1], value.dtype.type(9))
    model.set_value(op, parameter, value)
    return named(op)


# ---- of chunks of queries ----


def _chunks(model: Spoiled) -> list[tuple[Any, int, np.ndarray, np.ndarray]]:
    """The later slices of queries: those that begin after the first."""
    return [s for s in model.slices() if s[1] == 3 and s[2][3] and s[2][3] % 512 == 0]


def gap_between_chunks(model: Spoiled) -> str | None:
    """A chunk begins a query late."""
    found = model.one(_chunks(model))
    if found is None:
        return None
    op, _, begin, _ = found
    begin[3] += 1
    model.set_value(op, "begin", begin)
    return named(op)


def overlap_of_chunks(model: Spoiled) -> str | None:
    """A chunk begins a query early."""
    found = model.one(_chunks(model))
    if found is None:
        return None
    op, _, begin, _ = found
    begin[3] -= 1
    model.set_value(op, "begin", begin)
    return named(op)


def chunk_unlike_its_siblings(model: Spoiled) -> str | None:
    """The softmax of a chunk goes along another axis."""
    later = {named(found[0]) for found in _chunks(model)}
    for softmax in reversed(model.of_type("softmax")):
        scale = model.maker(softmax, "x")
        product = None if scale is None else model.maker(scale, "x")
        if product is not None and taken(product, "values", 1) in later:
            axis = model.value(softmax, "axis")
            assert axis is not None
            model.set_value(softmax, "axis", axis + 1)
            return named(softmax)
    return None


GRAPH_FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        residual_from_another_op,
        slice_shifted,
        end_too_short,
        height_and_width_exchanged,
        heads_exchanged,
        another_epsilon,
        another_scale,
        another_upsampling,
        another_factor,
        transposed,
        op_that_does_nothing,
        op_that_does_little,
        constant_of_ours,
        gap_between_chunks,
        overlap_of_chunks,
        chunk_unlike_its_siblings,
    )
}
