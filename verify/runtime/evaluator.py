"""Run an ML Program with PyTorch, op by op, anywhere.

What it proves is the program: its graph, weights and palettes. It does not prove what a
particular Core ML backend makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from convert.errors import CannotExecute, InputError
from verify.mil.load import load_program
from verify.mil.program import Constant, Op, Program, TensorType
from verify.operations.registry import TORCH_DTYPES, tensor_of
from verify.operations.strides import is_laid_out, like_strides
from verify.runtime.fusion import fuse_attention
from verify.runtime.inputs import check_names, checked_inputs
from verify.runtime.memory import Memory
from verify.runtime.plan import Step, make_plan, with_lifetimes
from verify.runtime.values import Values, storage


class Evaluator:
    """An ML Program, ready to run.

    Args:
        program: a loaded program, or the path of a package.
        function: of the package, where it has several.
        mode: `typed` accumulates in fp32 and rounds every result to its declared dtype, as fp16
            hardware with fp32 accumulators does; `fp32` never rounds, which tells the program's
            structure from its precision. `run` then takes an attention in one step
            (`verify.runtime.fusion`) unless it is asked to keep something.
        device: where torch computes. Weights go there one op at a time.

    Weights are read, and compressed ones decoded, when an op uses them and dropped after it;
    intermediates are dropped after their last use, or overwritten where an op can work in place.

    Raises:
        CannotExecute: an op of the program has no implementation, or has inputs that the
            implementation does not know.
    """

    def __init__(
        self,
        program: Program | str | Path,
        *,
        function: str | None = None,
        mode: Literal["typed", "fp32"] = "typed",
        device: str = "cpu",
    ) -> None:
        if mode not in ("typed", "fp32"):
            raise InputError(f"unknown mode {mode!r}", hint="Use 'typed' or 'fp32'.")
        if not isinstance(program, Program):
            program = load_program(program, function)
        elif function not in (None, program.function):
            raise InputError(
                f"is function {program.function!r}, not {function!r}", where=program.path
            )
        self.program = program
        self.mode = mode
        self.device = torch.device(device)
        self._memory = Memory()
        self._constants = dict(self.program.constants())
        self._plan, decoders = make_plan(self.program, self._constants)
        self._fused = self._plan
        if mode == "fp32":
            self._fused = with_lifetimes(fuse_attention(self._plan, self.program, self._constants))
        # Decoded weights are far larger than compressed ones, so each use decodes anew.
        self._decoders = {name: step for step in decoders for name, _ in step.op.outputs}
        self._steps = {id(step.op): step for step in (*self._plan, *decoders)}

    def run(
        self, inputs: Mapping[str, np.ndarray | Tensor], *, keep: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """The program's outputs, and the intermediates and constants named in `keep`.

        Args:
            inputs: one array per input of the program, in the declared shape. Floats are
                converted to the declared dtype, which rounds to fp16 in mode `typed`.
            keep: names of MIL values to return too.

        Returns:
            name -> tensor on the evaluator's device. In mode `typed` in the declared dtype, in
            mode `fp32` all floats are fp32. `uint16` comes as int32, which torch can compute with.

        Raises:
            InputError: an input is missing, unknown or of the wrong shape; a kept name is unknown.
            CannotExecute: an op fails, or a weight cannot be read.
        """
        check_names(self.program, keep)
        wanted = {*keep, *self.program.main.outputs}
        values = self._feed(inputs, self._memory)
        # What is between the ops of an attention is there if it is asked for.
        plan = self._plan if keep else self._fused
        for _ in self._iterate(plan, values, wanted, reuse=True):
            pass
        return {name: self._lookup(name, values) for name in sorted(wanted)}

    def steps(
        self, inputs: Mapping[str, np.ndarray | Tensor]
    ) -> Iterator[tuple[Op, dict[str, Tensor]]]:
        """Run op by op, yielding each op with its outputs; nothing yielded is overwritten later.

        `const` and `constexpr` ops are not steps: they happen inside the op that uses them.
        """
        wanted = set(self.program.main.outputs)
        yield from self._iterate(self._plan, self._feed(inputs), wanted, reuse=False)

    def run_op(self, op: Op, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One op of the program on given values, which are left as they are.

        Constants need not be among the values. This is the *local* error of a bisection.
        """
        step = self._steps[id(op)]
        missing = [n for n in step.names if n not in values and not self._is_constant(n)]
        if missing:
            raise InputError(f"op {op.name!r} needs {', '.join(sorted(missing))}")
        given = Values()
        for name in step.names:
            if name in values:
                given.put(name, values[name].to(self.device))
        return self._execute(step, given, frozenset())

    def constant(self, name: str) -> Tensor:
        """A `const`, or a decoded `constexpr` weight, in the dtype it is stored or decoded to."""
        if name in self._constants:
            return self._tensor(self._constants[name])
        return self._execute(self._decoders[name], Values(), frozenset())[name]

    # ---- the run ----

    def _iterate(
        self, plan: Sequence[Step], values: Values, wanted: set[str], *, reuse: bool
    ) -> Iterator[tuple[Op, dict[str, Tensor]]]:
        try:
            for step in plan:
                dying = step.last - wanted
                outputs = self._execute(step, values, dying if reuse else frozenset())
                for name, tensor in outputs.items():
                    values.put(name, tensor)
                for name in dying:
                    values.drop(name)
                yield step.op, outputs
        finally:
            self._memory.clear()

    def _execute(self, step: Step, values: Values, dying: Collection[str]) -> dict[str, Tensor]:
        op, kind = step.op, step.implementation.kind
        with torch.inference_mode(), self._full_precision():
            arguments, foreign, temporary = self._arguments(step, values, dying)
            try:
                result = step.implementation.function(**arguments)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise CannotExecute(
                    f"{op.type} {op.name!r} failed: {error}", where=self.program.path
                ) from error
            del arguments
            results = result if isinstance(result, tuple) else (result,)
            if len(results) != len(op.outputs):
                raise CannotExecute(
                    f"{op.type} {op.name!r} gave {len(results)} results, the program declares "
                    f"{len(op.outputs)}",
                    where=self.program.path,
                )
            outputs = {}
            for (name, type_), value in zip(op.outputs, results, strict=True):
                if kind == "move" and storage(value) in foreign:
                    # A view of a weight: what works in place later must not reach the weight.
                    value = value.clone()
                outputs[name] = self._declared(op, name, type_, value)
                if kind != "move" and outputs[name] is not value and storage(value) not in foreign:
                    temporary.append(value)  # it was rounded
            if temporary:
                kept = {storage(tensor) for tensor in outputs.values()}
                for tensor in temporary:
                    if storage(tensor) not in kept and not values.hold(tensor):
                        self._memory.give(tensor)
            return outputs

    def _arguments(
        self, step: Step, values: Values, dying: Collection[str]
    ) -> tuple[dict[str, Any], set[int], list[Tensor]]:
        """What to call the op's function with, the memory among it that holds constants, and the
        tensors that nobody needs after the call unless they are its result.
        """
        kind = step.implementation.kind
        upcast = kind == "math" or (kind == "map" and self.mode == "fp32")
        given: list[Tensor] = []
        reusable: list[Tensor] = []
        temporary: list[Tensor] = []
        foreign: set[int] = set()

        def tensor(binding: str | Constant) -> Tensor:
            held = isinstance(binding, str) and binding in values.tensors
            value = self._binding(binding, values)
            if upcast and value.dtype == torch.float16:
                value = self._memory.copy(value, torch.float32)
                reusable.append(value)
                temporary.append(value)
            elif not held:
                foreign.add(storage(value))
            elif binding in dying and values.exclusive(str(binding)):
                reusable.append(value)
            given.append(value)
            return value

        arguments = dict(step.values)
        for name, how, bindings in step.open:
            if how == "tensor":
                arguments[name] = tensor(bindings[0])
            elif how == "tensors":
                arguments[name] = [tensor(b) for b in bindings]
            else:
                arguments[name] = self._value(bindings, values)
        if step.implementation.takes_out:
            arguments["out"] = self._out(step, given, reusable, temporary)
        if step.implementation.takes_empty:
            arguments["empty"] = self._empty(temporary)
        return arguments, foreign, temporary

    def _out(
        self, step: Step, given: list[Tensor], reusable: list[Tensor], temporary: list[Tensor]
    ) -> Tensor | None:
        """A tensor that the op may write its result into, one of its own inputs if possible.

        It is laid out like the first input of its shape, whether that is used again or not: torch
        adds in another order along other strides, and results must not depend on reuse.
        """
        type_ = step.op.outputs[0][1]
        if -1 in type_.shape:
            return None
        is_math = step.implementation.kind == "math"
        dtype = torch.float32 if is_math else self._dtype(step.op, type_)
        layouts = (like_strides(t) for t in given if tuple(t.shape) == type_.shape)
        layout = next((strides for strides in layouts if strides is not None), None)
        for tensor in reusable:
            if (
                tensor.dtype == dtype
                and tuple(tensor.shape) == type_.shape
                and is_laid_out(tensor, layout)
            ):
                return tensor
        if type_.dtype not in ("fp16", "fp32"):
            return None
        return self._empty(temporary)(type_.shape, dtype=dtype, strides=layout)

    def _empty(self, temporary: list[Tensor]) -> Callable[..., Tensor]:
        """A function like `torch.empty`; what it makes is temporary."""

        def empty(
            shape: Sequence[int],
            *,
            dtype: torch.dtype = torch.float32,
            strides: Sequence[int] | None = None,
        ) -> Tensor:
            if self.device.type != "cpu":
                if strides is None:
                    return torch.empty(shape, dtype=dtype, device=self.device)
                return torch.empty_strided(shape, strides, dtype=dtype, device=self.device)
            tensor = self._memory.empty(shape, dtype, strides)
            temporary.append(tensor)
            return tensor

        return empty

    def _declared(self, op: Op, name: str, type_: TensorType, value: Tensor) -> Tensor:
        if not type_.any_rank and (
            len(value.shape) != len(type_.shape)
            or any(
                declared not in (-1, found)
                for declared, found in zip(type_.shape, value.shape, strict=True)
            )
        ):
            raise CannotExecute(
                f"{op.type} gave {name!r} the shape {list(value.shape)}, the program declares "
                f"{list(type_.shape)}",
                where=self.program.path,
                hint="The program is malformed, or this op's implementation is: open an issue.",
            )
        dtype = self._dtype(op, type_)
        if value.device == self.device:
            if value.dtype == dtype:
                return value
            if value.is_floating_point():
                return self._memory.copy(value, dtype)
        return value.to(self.device, dtype)

    def _dtype(self, op: Op | None, type_: TensorType) -> torch.dtype:
        if self.mode == "fp32" and type_.dtype == "fp16" and not _decodes(op):
            return torch.float32
        if type_.dtype not in TORCH_DTYPES:
            what = "an input" if op is None else f"{op.type} {op.name!r}"
            raise CannotExecute(f"{what} has the type {type_}", where=self.program.path)
        return TORCH_DTYPES[type_.dtype]

    def _full_precision(self) -> AbstractContextManager[Any]:
        # cuDNN would run fp32 convolutions in TF32, ten bits of mantissa, by default.
        if self.device.type != "cuda":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    # ---- values ----

    def _is_constant(self, name: str) -> bool:
        return name in self._constants or name in self._decoders

    def _tensor(self, constant: Constant) -> Tensor:
        return tensor_of(constant.array()).to(self.device)

    def _binding(self, binding: str | Constant, values: Values) -> Tensor:
        if isinstance(binding, Constant):
            return self._tensor(binding)
        if binding in values.tensors:
            return values.tensors[binding]
        return self.constant(binding)

    def _value(self, bindings: list[str | Constant], values: Values) -> Any:
        """A plain Python value; several bindings make a list."""
        found = []
        for binding in bindings:
            if isinstance(binding, str) and binding in self._constants:
                binding = self._constants[binding]
            if isinstance(binding, Constant):
                found.append(binding.item())
            else:
                found.append(self._binding(binding, values).tolist())
        return found[0] if len(found) == 1 else found

    def _lookup(self, name: str, values: Values) -> Tensor:
        return values.tensors[name] if name in values.tensors else self.constant(name)

    def _feed(
        self, inputs: Mapping[str, np.ndarray | Tensor], memory: Memory | None = None
    ) -> Values:
        values = Values(memory)
        for name, value in checked_inputs(self.program, inputs).items():
            dtype = self._dtype(None, self.program.main.inputs[name])
            given = value.to(self.device, dtype)
            values.put(name, given)
            # A copy is our own. To call it shared would outlive it: its address is used again, and
            # whether a later op works in place, and so in which layout, would be left to chance.
            if storage(given) == storage(value):
                values.share(name)
        return values


def _decodes(op: Op | None) -> bool:
    return op is not None and op.type.startswith("constexpr_")
