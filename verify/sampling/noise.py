"""The noise of a run, drawn once and replayed: seeds do not carry over between runtimes.

diffusers' pipelines and schedulers get all their noise (initial latents, the sample of the VAE's
posterior, what ancestral samplers add at each step) from `torch.randn`. Within a `with` block of a
`Noise` that call is answered by it; outside the block, and on other threads, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convert.errors import CannotExecute


class Noise(TorchFunctionMode):
    """Answers `torch.randn` within a `with` block, and keeps what it gave in `given`.

    Args:
        seed: of fresh noise; drawn by numpy, so that it is the same under every torch.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self.given: list[Tensor] = []

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor, float32."""
        return torch.from_numpy(self._generator.standard_normal(shape, np.float32))

    def finish(self) -> None:
        """To be called after the run."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        self.given.append(self.draw(tuple(int(n) for n in shape)))
        return self.given[-1].to(kwargs.get("device"), kwargs.get("dtype"), copy=True)


class RecordedNoise(Noise):
    """The same tensors again, in the same order.

    Raises:
        CannotExecute: the run asks for more noise than was recorded, or for another shape; or
            `finish` finds some that it did not ask for.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._recorded = list(tensors)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next recorded noise.

        Raises:
            CannotExecute: there is no more, or it has another shape.
        """
        index = len(self.given)
        if index >= len(self._recorded):
            raise CannotExecute(
                f"the replay draws noise more than the {index} times of the recording", hint=HINT
            )
        found = tuple(self._recorded[index].shape)
        if found != shape:
            raise CannotExecute(
                f"the replay draws noise {list(shape)}, the recording has {list(found)}", hint=HINT
            )
        return self._recorded[index]

    def finish(self) -> None:
        """To be called after the run: all of the recording must have been used."""
        if len(self.given) != len(self._recorded):
            raise CannotExecute(
                f"the replay drew noise {len(self.given)} times, the recording "
                f"{len(self._recorded)} times",
                hint=HINT,
            )


HINT = "Another version of diffusers samples in another way: record again with this one."
