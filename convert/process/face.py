"""What a package exports without loading it (PEP 562: `__getattr__` of a module)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def face(package: str, names: Mapping[str, tuple[str, str]]) -> Callable[[str], object]:
    """The `__getattr__` of `package`: each name is loaded when it is asked for.

    Args:
        names: exported name → module, and what it is called there.
    """

    def load(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module

        module, attribute = names[name]
        return getattr(import_module(module), attribute)

    return load
