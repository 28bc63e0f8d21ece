"""An artifact's folder as it lies on the disk: its models, by file and by component."""

from __future__ import annotations

from pathlib import Path

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.run.manifest import FILE as MANIFEST

__all__ = ["HINT", "MANIFEST", "SUFFIXES", "models_by_component", "models_in", "require_models"]
SUFFIXES = (".mlpackage", ".mlmodelc")  # of models; the package counts where there are both
HINT = (
    "An artifact folder holds Unet.mlpackage and its companions; `sdxl-coreml convert` makes one."
)


def models_in(folder: Path) -> list[Path]:
    """The models in a folder, in the order of their components; others come last."""
    order = [spec.file for spec in COMPONENTS.values()]
    found = sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))
    return sorted(found, key=lambda p: order.index(p.stem) if p.stem in order else len(order))


def models_by_component(folder: Path) -> dict[str, Path]:
    """The model of each component that the folder has, in the components' order."""
    found: dict[str, Path] = {}
    for name, component in COMPONENTS.items():
        files = (folder / f"{component.file}{suffix}" for suffix in SUFFIXES)
        if file := next((file for file in files if file.exists()), None):
            found[name] = file
    return found


def require_models(folder: Path) -> dict[str, Path]:
    """The same; raises InputError if it has none."""
    if not folder.is_dir():
        raise InputError("no such artifact folder", where=folder)
    found = models_by_component(folder)
    if not found:
        raise InputError("is not an artifact folder", where=folder, hint=HINT)
    return found
