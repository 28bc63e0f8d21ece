"""What runs a package: our evaluator on PyTorch, anywhere, or Core ML, on a Mac."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from convert.errors import CannotExecute, InputError
from convert.process.interrupts import require_uninterrupted

COMPUTE_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")


class Model(Protocol):
    """A package that is loaded; it is freed when nobody refers to it any more."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The package's outputs as float32 arrays by name.

        Raises:
            InputError: the inputs do not fit the package.
            CannotExecute: the package cannot be run.
        """
        ...


class Runtime(Protocol):
    """Loads packages, as many at once as are asked for."""

    name: str
    scope: str  # what a check with this runtime proves and does not

    def load(self, package: Path) -> Model:
        """The package, ready to run.

        Raises:
            CannotExecute: the package cannot be read.
        """
        ...


class TorchRuntime:
    """The MIL program run op by op with PyTorch; weights stay in their mapped files.

    Args:
        device: cpu, cuda or mps.
        mode: see `verify.mil.Evaluator`.

    Raises:
        InputError: PyTorch does not have the device.
    """

    name = "torch"
    scope = (
        "checks the program with our evaluator on PyTorch; a particular Neural Engine may differ"
    )

    def __init__(self, device: str = "cpu", mode: Literal["typed", "fp32"] = "typed") -> None:
        require_device(device)
        self.device = device
        self.mode = mode

    def load(self, package: Path) -> Model:
        """Read the program and look for its weights, of which none is read before it is used."""
        from verify.mil.program import require_weights
        from verify.runtime.evaluator import Evaluator

        evaluator = Evaluator(package, mode=self.mode, device=self.device)
        require_weights(evaluator.program)

        def run(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
            outputs = evaluator.run(inputs)
            return {name: value.float().cpu().numpy() for name, value in outputs.items()}

        return run


class CoreMLRuntime:
    """Core ML itself, through coremltools; only on macOS.

    Args:
        compute_units: one of `COMPUTE_UNITS`.

    Raises:
        InputError: this is no Mac, or there are no such compute units.
    """

    name = "coreml"

    def __init__(self, compute_units: str = "all") -> None:
        if not can_predict():
            raise InputError(
                f"Core ML runs only on macOS, this is {platform.system()}",
                hint="Use the runtime `torch`, which runs the same package anywhere.",
            )
        if compute_units not in COMPUTE_UNITS:
            raise InputError(
                f"unknown compute units `{compute_units}`; there are {', '.join(COMPUTE_UNITS)}",
                near=(compute_units, COMPUTE_UNITS),
            )
        self.compute_units = compute_units
        self.scope = (
            f"checks what Core ML computes on this Mac with compute units {compute_units}; "
            "other devices and systems may differ"
        )

    def load(self, package: Path) -> Model:
        """Load a package, or a compiled model, on `compute_units`.

        Raises:
            CannotExecute: Core ML refuses it.
        """
        import coremltools as ct

        units = getattr(ct.ComputeUnit, self.compute_units.upper())
        compiled = package.suffix == ".mlmodelc"
        load: Any = ct.models.CompiledMLModel if compiled else ct.models.MLModel
        try:
            model = load(str(package), compute_units=units)
        except Exception as error:  # whatever the framework says
            require_uninterrupted()
            raise CannotExecute(f"Core ML cannot load it: {error}", where=package) from error

        def run(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
            arrays = {name: value.float().cpu().numpy() for name, value in inputs.items()}
            try:
                outputs = model.predict(arrays)
            except Exception as error:
                require_uninterrupted()
                raise CannotExecute(f"Core ML cannot run it: {error}", where=package) from error
            return {name: np.asarray(value, np.float32) for name, value in outputs.items()}

        return run


def can_predict() -> bool:
    """Whether this platform has Core ML."""
    return platform.system() == "Darwin"


def choose(
    name: str = "auto", *, device: str = "cpu", compute_units: str = "all"
) -> TorchRuntime | CoreMLRuntime:
    """The runtime of that name; `auto` is Core ML on a Mac and PyTorch anywhere else.

    Raises:
        InputError: there is no such runtime, or not here.
    """
    if name == "coreml" or (name == "auto" and can_predict()):
        return CoreMLRuntime(compute_units)
    if name in ("auto", "torch"):
        return TorchRuntime(device)
    raise InputError(
        f"unknown runtime `{name}`; there are auto, coreml and torch",
        near=(name, ("auto", "coreml", "torch")),
    )


def require_device(device: str) -> None:
    """Raise InputError unless PyTorch can compute on `device`."""
    import torch

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind = device.partition(":")[0]
    if not available.get(kind, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise InputError(f"PyTorch has no device `{device}` here; it has {usable}")
