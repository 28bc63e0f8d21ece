"""The values that are alive while a program runs, and who shares their memory."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from verify.runtime.memory import Memory


class Values:
    """Named tensors, and how many of them share each piece of memory.

    Args:
        memory: gets what the last of its owners has dropped; None where somebody outside may
            hold the tensors too.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._memory = memory
        self._owners: Counter[int] = Counter()

    def put(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor, which may share its memory with others that are held."""
        self.tensors[name] = tensor
        self._owners[storage(tensor)] += 1

    def share(self, name: str) -> None:
        """Never call this tensor's memory exclusive: someone outside holds it too."""
        self._owners[storage(self.tensors[name])] += 1

    def drop(self, name: str) -> None:
        """Let go of a tensor; its memory is used again once no other that is held lies in it."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            return
        place = storage(tensor)
        self._owners[place] -= 1
        if not self._owners[place]:
            del self._owners[place]  # an address is used again
            if self._memory is not None:
                self._memory.give(tensor)

    def exclusive(self, name: str) -> bool:
        """Whether no other value, and nobody outside, sees this tensor's memory."""
        return self._owners[storage(self.tensors[name])] == 1

    def hold(self, tensor: Tensor) -> bool:
        """Whether a value sees this tensor's memory."""
        return storage(tensor) in self._owners


def storage(tensor: Tensor) -> int:
    """An identity for the memory behind a tensor, the same for all views of it."""
    return tensor.untyped_storage().data_ptr()
