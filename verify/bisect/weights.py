"""The weights of a package against those of the checkpoint: which one is not what it should be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from verify.artifact.stored import PALETTE_SLACK
from verify.judge.metrics import compare
from verify.mil import Constant, Op
from verify.runtime.evaluator import Evaluator

SAME_DB = 60.0  # float16 keeps 70 dB and more of any weight


class ProgramWeights:
    """The checkpoint's tensors in the shapes of a program's constants.

    Args:
        evaluator: of the program.
        names: MIL constant → checkpoint tensor, of `bisect_modules.weight_names`.
    """

    def __init__(
        self, checkpoint: Checkpoint, component: str, evaluator: Evaluator, names: Mapping[str, str]
    ) -> None:
        self.tensors = checkpoint.component_tensors(component)
        self.evaluator, self.names = evaluator, names
        self._problems: dict[str, str] = {}
        self._decoders = {
            op.outputs[0][0]: op
            for op in evaluator.program.ops
            if op.type.startswith("constexpr_") and op.type != "constexpr_cast"
        }

    def is_compressed(self, name: str) -> bool:
        """Whether a constant is stored in fewer bits than it is computed in."""
        return name in self._decoders

    def original(self, name: str) -> Tensor | None:
        """The checkpoint's values for a constant; None if it has none that could be."""
        tensor = self.tensors.get(self.names.get(name, ""))
        if tensor is None:
            return None
        shape = self.evaluator.constant(name).shape
        value = torch.from_numpy(tensor.read(np.float32))
        return value.reshape(shape) if value.numel() == shape.numel() else None

    def problem(self, name: str) -> str:
        """What is wrong with a constant that is a weight; empty if nothing is."""
        if name not in self._problems:
            self._problems[name] = self._problem(name)
        return self._problems[name]

    def _problem(self, name: str) -> str:
        tensor, stored = self.names.get(name), self.evaluator.constant(name)
        if tensor is None or not stored.is_floating_point():
            return ""
        stored = stored.float()
        original = self.original(name)
        if original is None:
            return f"{name} has the shape {list(stored.shape)}, tensor `{tensor}` another"
        if not torch.isfinite(stored).all():
            index = [int(i) for i in (~torch.isfinite(stored)).nonzero()[0]]
            return f"{name} is {float(stored[tuple(index)])} at {index}"
        if self.is_compressed(name):
            return self._palette_problem(self._decoders[name], stored, original)
        if compare(original, stored).snr_db >= SAME_DB:
            return ""
        return f"{name} differs from checkpoint tensor `{tensor}`{self._instead(stored, tensor)}"

    def _instead(self, stored: Tensor, own: str) -> str:
        """What the values are instead, where that can be told."""
        if not stored.any():
            return ": it is all zeros"
        for name, tensor in self.tensors.items():
            if tensor.size == stored.numel() and name != own:
                value = torch.from_numpy(tensor.read(np.float32)).reshape(-1)
                if torch.allclose(value, stored.reshape(-1), rtol=1e-3, atol=1e-6):
                    return f": it is `{name}`"
        original = torch.from_numpy(self.tensors[own].read(np.float32)).reshape(-1)
        snr = compare(original, stored.reshape(-1)).snr_db
        same = torch.allclose(
            original.sort()[0], stored.reshape(-1).sort()[0], rtol=1e-3, atol=1e-6
        )
        return f" (SNR {snr:.1f} dB){': the same values in another order' if same else ''}"

    def _palette_problem(self, op: Op, stored: Tensor, original: Tensor) -> str:
        """An entry of a look-up table that is far from the mean of the weights it stands for.

        Only of one palette for the whole tensor. A good one is a fixed point of Lloyd's algorithm:
        moving entries to the means of their weights, and weights to their nearest entries, gains
        next to nothing.
        """
        lut = op.attributes.get("lut") or op.inputs.get("lut", [None])[0]
        if not isinstance(lut, Constant) or math.prod(lut.type.shape) != max(lut.type.shape):
            return ""
        values, weights = stored.reshape(-1).double(), original.reshape(-1).double()
        entries, index = values.unique(return_inverse=True)
        counts = torch.bincount(index, minlength=len(entries))
        means = torch.bincount(index, weights, minlength=len(entries)) / counts
        better = means.sort()[0]
        nearest = better[torch.bucketize(weights, (better[1:] + better[:-1]) / 2)]
        error = float((weights - values).square().sum())
        if error <= PALETTE_SLACK * float((weights - nearest).square().sum()):
            return ""
        worst = int((counts * (entries - means).square()).argmax())
        name = op.outputs[0][0]
        return (
            f"{name}: the palette's entry {float(entries[worst]):.4g} stands for "
            f"{int(counts[worst])} weights of `{self.names[name]}`, whose mean is "
            f"{float(means[worst]):.4g}"
        )


def constants_of(ops: Collection[Op], names: Mapping[str, str]) -> list[tuple[Op, str]]:
    """(op, constant) for every weight that some ops take."""
    return [
        (op, value)
        for op in ops
        for values in op.inputs.values()
        for value in values
        if isinstance(value, str) and value in names
    ]
