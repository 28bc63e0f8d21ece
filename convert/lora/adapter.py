"""What a LoRA file has for one tensor of a checkpoint: tensors by their roles, by reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint.checkpoint import Shape
from convert.checkpoint.tensors import Tensor

OF_INPUTS = "ia3 of inputs"  # the same tensors as "ia3", where `on_input` is not 0
ROTATIONS = {"oft": 3, "boft": 4}  # kind → axes of `oft_blocks`


@dataclass(frozen=True)
class LoraAdapter:
    """The tensors of a LoRA file that change one tensor of a checkpoint."""

    kind: str  # of `kinds.KINDS`
    module: str  # as the file spells it
    path: Path
    tensors: Mapping[str, Tensor]  # by role, see `suffixes.ROLES`
    scale: float  # of its product: alpha ÷ rank; of rotations: the constraint ÷ outputs

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's magnitudes."""
        return self.tensors.get("magnitude", self.tensors.get("dora_scale"))

    def key(self, digests: Mapping[Path, str]) -> Any:
        """What determines it, as JSON; see `Tensor.key`."""
        tensors = {role: tensor.key(digests) for role, tensor in self.tensors.items()}
        return [self.kind, self.scale, tensors]

    def shape(self, role: str) -> Shape:
        """The shape of one of its tensors, () if it lacks it."""
        return self.tensors[role].shape if role in self.tensors else ()

    def sizes(self, role: str) -> tuple[int, int]:
        """The shape of one of its tensors as a matrix, (0, 0) if it lacks it."""
        shape = self.shape(role)
        return (shape[0], columns(shape)) if shape else (0, 0)

    def matrix(self, role: str) -> np.ndarray:
        """One of its tensors as [first axis, the others], float32."""
        value = self.tensors[role].read(np.float32)
        return value.reshape(len(value), -1)


def columns(shape: Shape) -> int:
    """The columns of a weight as a matrix."""
    return math.prod(shape[1:])
