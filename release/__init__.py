"""From verified packages to what people download and load.

What a script needs stands here, and is loaded when it is asked for; the rooms have the rest.
"""

from __future__ import annotations

from convert.process.face import face

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
__getattr__ = face(__name__, _FACE)
