"""Faults that the judge must see: in what an op computes, and in the text of a compiled model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from release.compile.mlmodelc import compile_package
from verify.operations.registry import OPS

PLANTED = 3  # in how many programs each


_OPERANDS = (r"sub\(x = (\w+), y = (\w+)\)", r"sub(x = \2, y = \1)")


@dataclass(frozen=True)
class Fault:
    """A fault, and the op that a program must have for it to make a difference."""

    name: str
    op: str
    plant: Callable[[], AbstractContextManager[Any]]


@contextmanager
def _computing(op: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Whatever an op gives is changed."""
    true = OPS[op]
    false = replace(true, function=lambda *a, **k: change(true.function(*a, **k)))
    with mock.patch.dict(OPS, {op: false}):
        yield


def _turned(y: torch.Tensor) -> torch.Tensor:
    return y.flip(tuple(range(y.dim())))


def _writing(pattern: str, change: str) -> AbstractContextManager[Any]:
    """Whatever is compiled has another text at the first place that fits."""

    def compiled(package: Path, out: Path, **options: Any) -> Path:
        model = compile_package(package, out, **options)
        text = (model / "model.mil").read_text("utf-8")
        (model / "model.mil").write_text(re.sub(pattern, change, text, count=1), "utf-8")
        return model

    return mock.patch("tests.conformance.judge.compile_package", compiled)


_EXCHANGED = (r"update = (\w+), x = (\w+)", r"update = \2, x = \1")
FAULTS = (
    Fault("conv is 2 % too much", "conv", partial(_computing, "conv", lambda y: y * 1.02)),
    Fault(
        "an update exchanged with what it updates", "slice_update", partial(_writing, *_EXCHANGED)
    ),
    Fault("tanh is 2 % too much", "tanh", partial(_computing, "tanh", lambda y: y * 1.02)),
    Fault("transpose turns an axis", "transpose", partial(_computing, "transpose", _turned)),
    Fault("another op in the text", "relu", partial(_writing, r"= relu\(", "= abs(")),
    Fault("operands of sub exchanged", "sub", partial(_writing, *_OPERANDS)),
)
