"""The values that are alive while a program runs, and who shares their memory."""

from collections import Counter

from torch import Tensor


class Values:
    """Named tensors, and how many of them share each piece of memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._owners: Counter[int] = Counter()

    def put(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self._owners[storage(tensor)] += 1

    def share(self, name: str) -> None:
        """Never call this tensor's memory exclusive: someone outside holds it too."""
        self._owners[storage(self.tensors[name])] += 1

    def drop(self, name: str) -> None:
        tensor = self.tensors.pop(name, None)
        if tensor is not None:
            self._owners[storage(tensor)] -= 1

    def exclusive(self, name: str) -> bool:
        """Whether no other value, and nobody outside, sees this tensor's memory."""
        return self._owners[storage(self.tensors[name])] == 1


def storage(tensor: Tensor) -> int:
    """An identity for the memory behind a tensor, the same for all views of it."""
    return tensor.untyped_storage().data_ptr()
