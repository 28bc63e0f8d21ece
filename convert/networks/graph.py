"""Building one MIL function, with the weights by reference.

The Builder sees every weight as an array of its true shape whose elements all lie at one address
(stride 0), so building a 2.57 G-parameter graph touches no weight. What belongs into the weight
file is collected as `Blob`s beside the program; `convert.weights.weight_file` streams them later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, Var, types

from convert.checkpoint.tensors import Tensor
from convert.errors import InputError
from convert.weights.compress import INTEGERS, NONE, Compression, Method
from convert.weights.streams import GroupedTensor, PalettizedTensor, QuantizedTensor
from convert.weights.weight_file import DTYPE_CODES, Blob, Value

# A constant of at least this many elements goes into the weight file, as coremltools has it.
FILE_THRESHOLD = 10
# How coremltools marks arrays whose elements are narrower than a byte.
NARROW = {
    (np.dtype(np.int8), 4): types.np_int4_dtype,
    (np.dtype(np.uint8), 1): types.np_uint1_dtype,
    (np.dtype(np.uint8), 2): types.np_uint2_dtype,
    (np.dtype(np.uint8), 3): types.np_uint3_dtype,
    (np.dtype(np.uint8), 4): types.np_uint4_dtype,
    (np.dtype(np.uint8), 6): types.np_uint6_dtype,
}
MIL_TYPES = {np.dtype(np.float16): types.fp16, np.dtype(np.float32): types.fp32}


@dataclass(frozen=True)
class Input:
    """One input of a network."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Network:
    """A finished graph and the constants that its weight file holds."""

    program: Program
    blobs: Mapping[str, Blob]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """The function under construction: constants, names, and the tensors still to be used."""

    tensors: Mapping[str, Tensor]
    dtype: np.dtype  # of weights and activations unless a layer says otherwise
    compression: Compression = NONE
    is_ios18: bool = False  # the opset has the decoders of iOS 18 and macOS 15
    blobs: dict[str, Blob] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _names: dict[str, int] = field(default_factory=dict)
    _constants: dict[tuple[Any, ...], Var] = field(default_factory=dict)

    @property
    def root(self) -> Module:
        """The module without a name, whose parts are named from the top."""
        return Module(self, "")

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number behind it where it is taken."""
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return wanted if count == 0 else self.name(f"{wanted}_{count}")

    def weight(self, key: str, shape: tuple[int, ...], mil_shape: tuple[int, ...] | None) -> Var:
        """The checkpoint's tensor `key`, which must have `shape`, as a constant of `mil_shape`."""
        tensor = self.tensors.get(key)
        if tensor is None:
            raise InputError(
                f"tensor `{key}` is missing; the config asks for it, of shape {list(shape)}",
                where=self._where(),
                hint="The weights do not belong to this config.json, or are incomplete.",
            )
        if tensor.shape != shape:
            raise InputError(
                f"tensor `{key}` has shape {list(tensor.shape)}; the config makes it {list(shape)}",
                where=tensor.path,
                hint="The weights do not belong to this config.json.",
            )
        if key in self._used:
            raise AssertionError(f"tensor {key} used twice: a mistake in the network")
        self._used.add(key)
        shape = mil_shape or shape
        name = self.name(key.replace(".", "_"))
        if tensor.size < FILE_THRESHOLD:
            return mb.const(val=tensor.read(self.dtype).reshape(shape), name=name)
        method = self.compression.method(key)
        if method is None:
            return self._blob(Blob(name, self.dtype, shape, tensor, key))
        if method.bits in INTEGERS:
            return self._quantized(key, name, tensor, shape, INTEGERS[method.bits])
        return self._palettized(key, name, tensor, shape, method)

    def _palettized(
        self, key: str, name: str, tensor: Tensor, shape: tuple[int, ...], method: Method
    ) -> Var:
        """A weight as look-up tables, one for all or one for each group, and packed indices."""
        bits = int(method.bits)
        source: PalettizedTensor | GroupedTensor = PalettizedTensor(tensor, bits)
        if method.group_size is not None:
            assert self.is_ios18, "iOS16's op has one table"
            source = GroupedTensor(tensor, bits, method.group_size)
        byte, entries = np.dtype(np.uint8), 1 << bits
        if self.is_ios18:
            packed = None if bits == 8 else bits
            ones = (1,) * (len(shape) - 1)
            tables = (source.groups, *ones, entries, 1)
            indices = Blob(f"{name}_indices", byte, shape, source.indices, key, packed)
            lut = Blob(f"{name}_lut", self.dtype, tables, source.lut, key)
            return mb.constexpr_lut_to_dense(
                indices=self._blob(indices), lut=self._blob(lut), name=name
            )
        size = (-(-tensor.size * bits // 8),)
        lut = Blob(f"{name}_lut", self.dtype, (entries,), source.lut, key)
        return mb.constexpr_lut_to_dense(
            indices=self._blob(Blob(f"{name}_indices", byte, size, source.indices, key)),
            lut=self._blob(lut),
            shape=mb.const(val=np.array(shape, np.uint32), name=f"{name}_shape"),
            name=name,
        )

    def _quantized(
        self, key: str, name: str, tensor: Tensor, shape: tuple[int, ...], bits: int
    ) -> Var:
        """A weight as integers with a scale for each output channel, or for each block of it."""
        source = QuantizedTensor(tensor, bits)
        byte, channels = np.dtype(np.int8), shape[0]
        packed = 4 if bits == 4 else None
        data = Blob(f"{name}_data", byte, shape, source.data, key, packed)
        if self.is_ios18:
            blocks = (channels, source.blocks, *(1,) * (len(shape) - 2))
            scale = Blob(f"{name}_scale", self.dtype, blocks, source.scale, key)
            return mb.constexpr_blockwise_shift_scale(
                data=self._blob(data), scale=self._blob(scale), name=name
            )
        scale = Blob(f"{name}_scale", self.dtype, (channels,), source.scale, key)
        return mb.constexpr_affine_dequantize(
            quantized_data=self._blob(data),
            scale=self._blob(scale),
            zero_point=self.constant(f"zero_points_{channels}", np.zeros(channels, np.int8)),
            axis=self.constant("axis", np.int32(0)),
            name=name,
        )

    def constant(self, param: str, value: Any) -> Var:
        """A constant of our own, made once however often it is used.

        Floats become the graph's dtype and integers int32; numpy values keep theirs.
        """
        if isinstance(value, bool | str):
            key: tuple[Any, ...] = (type(value), value)
        else:
            if not isinstance(value, np.ndarray | np.generic):
                value = np.asarray(value)
                kinds = {"f": self.dtype, "i": np.dtype(np.int32), "b": np.dtype(np.bool_)}
                value = value.astype(kinds[value.dtype.kind])
                value = value if value.ndim else value[()]
            key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self.name(param)
            if isinstance(value, np.ndarray) and value.size >= FILE_THRESHOLD:
                assert value.dtype in DTYPE_CODES, f"{param}: {value.dtype} in the weight file"
                blob = Blob(name, value.dtype, value.shape, Value(value), None)
                self._constants[key] = self._blob(blob)
            else:
                self._constants[key] = mb.const(val=value, name=name)
        return self._constants[key]

    def _blob(self, blob: Blob) -> Var:
        self.blobs[blob.name] = blob
        dtype = blob.dtype if blob.packed is None else NARROW[blob.dtype, blob.packed]
        return mb.const(val=np.broadcast_to(np.zeros((), dtype), blob.shape), name=blob.name)

    def _where(self) -> object:
        tensor = next(iter(self.tensors.values()), None)
        return tensor.path if tensor else None

    def require_all_used(self) -> None:
        """Raise InputError if the checkpoint holds a tensor that the network has no place for."""
        extra = sorted(self.tensors.keys() - self._used)
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise InputError(
                f"tensor `{extra[0]}`{more} has no place in the network that the config describes",
                where=self.tensors[extra[0]].path,
                hint="The weights do not belong to this config.json.",
            )


@dataclass(frozen=True)
class Module:
    """A place in the torch module tree: finds its weights and names its ops after itself."""

    graph: Graph
    path: str

    def __getitem__(self, name: str | int) -> Module:
        return Module(self.graph, f"{self.path}.{name}" if self.path else str(name))

    def __contains__(self, name: str) -> bool:
        return self[name].path in self.graph.tensors

    def weight(
        self, name: str, shape: tuple[int, ...], mil_shape: tuple[int, ...] | None = None
    ) -> Var:
        """This module's parameter `name`; see `Graph.weight`."""
        return self.graph.weight(self[name].path, shape, mil_shape)

    def emit(self, op: str, *, name: str | None = None, **inputs: Any) -> Any:
        """Add an op whose name starts with this module's path; plain values become constants.

        Args:
            op: MIL op type.
            name: appended to the path; the op type if None, nothing if empty (the op that makes
                the module's output has the module's own name).
        """
        parts = [self.path.replace(".", "_"), op if name is None else name]
        return emit(self.graph, op, "_".join(p for p in parts if p), **inputs)


def emit(graph: Graph, op: str, op_name: str, **inputs: Any) -> Any:
    """Add an op called `op_name`; returns its output Var, or a tuple of them."""
    given = {}
    for param, value in inputs.items():
        if isinstance(value, Var) or _is_vars(value):
            given[param] = value
        else:
            given[param] = graph.constant(param, value)
    return getattr(mb, op)(name=graph.name(op_name), **given)


def _is_vars(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Var)


def build(
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, Input],
    body: Callable[..., Mapping[str, Var]],
    *,
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """Run `body(module, **inputs)` and return the network it built.

    Args:
        tensors: what the network must use, each exactly once.
        inputs: the function's inputs.
        body: gets the root `Module` and the inputs' Vars; returns the outputs by name.
        dtype: of weights and activations.
        target: coremltools' opset version, for example `ct.target.iOS17`.
        compression: of the weights.

    Raises:
        InputError: a tensor is missing, of another shape, or left over.
    """
    graph = Graph(tensors, np.dtype(dtype), compression, target >= ct.target.iOS18)
    placeholders = {
        name: mb.placeholder(shape=i.shape, dtype=MIL_TYPES[i.dtype]) for name, i in inputs.items()
    }
    for name in inputs:
        graph.name(name)
    with Function(placeholders, opset_version=target) as function:
        outputs = body(graph.root, **function.inputs)
        function.set_outputs(list(outputs.values()))
    graph.require_all_used()
    for name, var in outputs.items():
        var.name = graph.name(name)
    program = Program()
    program.add_function("main", function)
    return Network(program, graph.blobs, tuple(outputs))
