"""Attention as one step, for where nothing is rounded between its ops.

A chain `matmul`, `mul`, `softmax`, `matmul`, or the same with `einsum`, is what its formula says as
long as every result stays in float32. torch's own attention then takes its place, as it does in
diffusers: the weights, 1.3 GB at 1024×1024, are never in memory as a whole. Rounded op by op, in
the declared types, a chain is another program and runs as it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from verify.mil.program import Constant, Op, Program
from verify.operations.linear import is_bc1s
from verify.operations.registry import Implementation
from verify.runtime.plan import Step


def fuse_attention(
    steps: Sequence[Step], program: Program, constants: Mapping[str, Constant]
) -> list[Step]:
    """The steps with every attention in one, in the place of its last.

    Nothing else may use what is between the ops of a chain.
    """
    finder = _Finder(
        {name: step for step in steps for name, _ in step.op.outputs},
        Counter([*program.main.outputs, *(name for step in steps for name in step.names)]),
        constants,
    )
    fused: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        if found := finder.attention(step):
            fused[id(step)], before = found
            gone.update(map(id, before))
    return [fused.get(id(step), step) for step in steps if id(step) not in gone]


@dataclass(frozen=True)
class _Finder:
    makers: Mapping[str, Step]
    uses: Counter[str]
    constants: Mapping[str, Constant]

    def attention(self, last: Step) -> tuple[Step, tuple[Step, ...]] | None:
        """The chain that ends in a step as one, and what is before its end; None if there is none.

        Values are channels first: `matmul` has [B, h, d, S], `einsum` [B, d, 1, S].
        """
        kind = last.op.type
        value, weights = _factors(last, transposed="y")
        softmax = self._maker(weights, "softmax")
        if softmax is None or not _is_over_keys(softmax, kind):
            return None
        scaled = self._maker(_name(softmax.op, "x"), "mul")
        if scaled is None:
            return None
        product = self._maker(_name(scaled.op, "x"), kind)
        scale = self.constants.get(_name(scaled.op, "y"))
        if product is None or scale is None or scale.type.shape:
            return None
        first, second = _factors(product, transposed="x")
        if not first:
            return None
        # The weights are [B, h, Q, K] of a matmul, [B, K, 1, Q] of an einsum.
        query, key = (first, second) if kind == "matmul" else (second, first)
        names = {"query": query, "key": key, "value": value}
        taken = frozenset(names.values())
        step = Step(
            op=last.op,
            implementation=Implementation(
                _heads if kind == "matmul" else _bc1s,
                "math",
                dict.fromkeys(names, "tensor"),
                frozenset(names),
                takes_out=False,
                takes_empty=False,
            ),
            values={"scale": float(scale.item())},
            open=[(parameter, "tensor", [name]) for parameter, name in names.items()],
            names=taken,
            last=frozenset(),  # of lifetimes, which come afterwards
        )
        return step, (product, scaled, softmax)

    def _maker(self, name: str, type_: str) -> Step | None:
        """The step of a type that makes a value which is used once."""
        step = self.makers.get(name)
        return step if step and step.op.type == type_ and self.uses[name] == 1 else None


def _factors(step: Step, *, transposed: str) -> tuple[str, str]:
    """The values that a product of attention multiplies; empty if it is none.

    Args:
        transposed: which operand of a matmul is.
    """
    op, names = step.op, list[str]()
    if op.type == "matmul":
        if {side for side in "xy" if step.values.get(f"transpose_{side}")} == {transposed}:
            names = [_name(op, "x"), _name(op, "y")]
    elif op.type == "einsum" and is_bc1s(str(step.values.get("equation"))):
        names = [v for v in op.inputs["values"] if isinstance(v, str)]
    if len(names) != 2 or len(op.outputs[0][1].shape) != 4:
        return "", ""
    return names[0], names[1]


def _is_over_keys(softmax: Step, product: str) -> bool:
    axis = int(softmax.values.get("axis", -1)) % 4
    return axis == (3 if product == "matmul" else 1)


def _name(op: Op, parameter: str) -> str:
    """The value that an op takes; empty if it is a constant that has no name."""
    (value,) = op.inputs[parameter]
    return value if isinstance(value, str) else ""


def _heads(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """query [B, h, d, Q], key and value [B, h, d, K] → [B, h, d, Q]."""
    rows = (t.mT if t.stride(-2) == 1 else t.mT.contiguous() for t in (query, key, value))
    query, key, value = rows
    return F.scaled_dot_product_attention(query, key, value, scale=scale).mT


def _bc1s(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """query [B, d, 1, Q], key [B, K, 1, d], value [B, d, 1, K] → [B, d, 1, Q]."""
    return (
        _heads(
            query.squeeze(2).unsqueeze(1),
            key.squeeze(2).mT.unsqueeze(1),
            value.squeeze(2).unsqueeze(1),
            scale,
        )
        .squeeze(1)
        .unsqueeze(2)
    )
