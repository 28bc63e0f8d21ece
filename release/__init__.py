"""From verified packages to what people download and load.

What a script needs stands here, and is loaded when it is asked for; the rooms have the rest.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from release.build import build_release
    from release.compile.mlmodelc import compile_package
    from release.lint.lint import lint as lint_bundle
    from release.pack.pack import find_artifacts

_FACE = {
    "build_release": ("release.build", "build_release"),
    "compile_package": ("release.compile.mlmodelc", "compile_package"),
    "find_artifacts": ("release.pack.pack", "find_artifacts"),
    "lint_bundle": ("release.lint.lint", "lint"),
}
__all__ = list(_FACE)


def __getattr__(name: str) -> object:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _FACE[name]
    return getattr(import_module(module), attribute)
