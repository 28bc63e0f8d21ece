"""One program of coremltools' tests: run by our evaluator, compiled by our compiler, judged."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from convert.errors import UserError
from release.compile.mlmodelc import compile_package
from tests.support.programs import assert_same
from verify.mil import Program, histogram, load_program
from verify.runtime.evaluator import Evaluator

Verdict = Literal["right", "wrong", "crash", "silent", "refused"]
Outputs = dict[str, torch.Tensor]
Mode = Literal["fp32", "typed"]
MODES: tuple[Mode, ...] = ("fp32", "typed")
HALF = 4e-3  # of the largest value: what a result, and its operands, may lose as float16


@dataclass
class Outcome:
    """What became of one program.

    `silent` is what nobody was told of: compiled to something else, or compared with nothing.
    """

    verdict: Verdict
    message: str = ""
    ops: list[str] = field(default_factory=list)
    error: float = 0.0  # largest difference, in units of the largest expected value
    outputs: Outputs = field(default_factory=dict)  # in mode `typed`

    def facts(self) -> dict[str, Any]:
        """What is kept of it, ready for JSON."""
        return {k: v for k, v in vars(self).items() if k != "outputs"}


@dataclass(frozen=True)
class Expected:
    """What a test asks of a program's outputs."""

    outputs: Mapping[str, Any]
    atol: float
    rtol: float
    half: bool


def judge(package: Path, inputs: Mapping[str, np.ndarray], expected: Expected | None) -> Outcome:
    """Run a package in both modes, compile it, read that back and run it again.

    Args:
        expected: None where the test itself looks at what it predicted.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _judge(package, inputs, expected, Path(folder))
        except Exception:  # an error that is not told to the user as such
            return Outcome("crash", traceback.format_exc(limit=-3))


def _judge(
    package: Path, inputs: Mapping[str, np.ndarray], expected: Expected | None, folder: Path
) -> Outcome:
    try:
        program = load_program(package)
    except UserError as error:
        return _unreadable(package, folder, error)
    outcome = Outcome("right", ops=sorted(set(histogram(program)) - {"const"}))
    runs = {mode: _run(program, mode, inputs) for mode in MODES}
    for mode, result in runs.items():
        if expected is not None and not isinstance(result, str):
            problem, error = difference(
                result, replace(expected, half=expected.half or _holds_half(program))
            )
            outcome.error = max(outcome.error, error)
            if problem:
                return replace(outcome, verdict="wrong", message=f"{mode}: {problem}")
    refusal = next((r for r in runs.values() if isinstance(r, str)), None)
    try:
        compiled = compile_package(package, folder, engine="native")
    except UserError as error:
        return replace(outcome, verdict="refused", message=refusal or f"compile: {error.problem}")
    if problem := _other(compiled, program, runs, inputs):
        return replace(outcome, verdict="silent", message=f"compiled: {problem}")
    if refusal is not None:
        return replace(outcome, verdict="refused", message=refusal)
    assert not isinstance(runs["typed"], str)
    return replace(outcome, outputs=runs["typed"])


def _run(
    program: Program, mode: Literal["fp32", "typed"], inputs: Mapping[str, Any]
) -> Outputs | str:
    """A program's outputs, or why it is refused."""
    try:
        return Evaluator(program, mode=mode).run(inputs)
    except UserError as error:
        return error.problem


def _other(
    compiled: Path, program: Program, runs: Mapping[Mode, Outputs | str], inputs: Mapping[str, Any]
) -> str:
    """What is another in a compiled model than in its program: its structure, or what it gives."""
    try:
        back = load_program(compiled)
        assert_same(back, program)
    except (UserError, AssertionError) as error:
        return str(error) or "another structure"
    for mode, before in runs.items():
        after = _run(back, mode, inputs)
        if isinstance(before, str) or isinstance(after, str):
            if before != after:
                return f"{mode}: {after if isinstance(after, str) else 'no refusal'}"
        elif not same_bits(before, after):
            return f"{mode}: other bits"
    return ""


def _unreadable(package: Path, folder: Path, error: UserError) -> Outcome:
    """What is not read must not be compiled."""
    try:
        compile_package(package, folder, engine="native")
    except UserError:
        return Outcome("refused", error.problem)
    return Outcome("silent", f"compiled what cannot be read: {error.problem}")


def _holds_half(program: Program) -> bool:
    """Whether anything is float16, whatever precision a test asked for: tolerances forget that."""
    types = [type_ for op in program.ops for _, type_ in op.outputs]
    return any(type_.dtype == "fp16" for type_ in (*types, *program.main.inputs.values()))


def difference(found: Mapping[str, torch.Tensor], expected: Expected) -> tuple[str, float]:
    """What is wrong with outputs (nothing: an empty text), and their largest relative error.

    A program in float16 is given as much as its results lose by being rounded, not the half unit
    that the tests give Core ML; one in float32 what the test says.
    """
    from coremltools.converters.mil.testing_utils import _get_coreml_out_from_dict

    worst = 0.0
    for name, value in expected.outputs.items():
        # coremltools makes names fit for code.
        array, wanted = _get_coreml_out_from_dict(found, name).numpy(), np.asarray(value)
        if array.shape != wanted.shape and (wanted.shape, array.shape) != ((), (1,)):
            return f"{name} has the shape {array.shape}, not {wanted.shape}", worst
        array, wanted = array.astype(np.float64), wanted.astype(np.float64).reshape(array.shape)
        finite = np.isfinite(wanted)
        scale = np.abs(wanted[finite]).max(initial=0)
        gap = np.abs(array - wanted)[finite].max(initial=0)
        worst = max(worst, float(gap / scale) if scale else float(gap))
        atol, rtol = (HALF * scale, 0.0) if expected.half else (expected.atol, expected.rtol)
        if not np.allclose(array, wanted, atol=atol, rtol=rtol, equal_nan=True):
            return f"{name} is off by {gap:.3g} of {scale:.3g}", worst
    return "", worst


def same_bits(one: Outputs, other: Outputs) -> bool:
    """Whether outputs are equal, NaN and the sign of zero included."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and one[n].numpy().tobytes() == other[n].numpy().tobytes()
        for n in one
    )
