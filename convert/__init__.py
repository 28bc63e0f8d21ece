"""SDXL checkpoint → Core ML model packages: networks written in MIL, weights by reference.

What a script needs stands here, and is loaded when it is asked for; the rooms have the rest.
"""

from __future__ import annotations

from convert.process.face import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from convert.checkpoint.checkpoint import Checkpoint
    from convert.errors import UserError
    from convert.opening.door import open_checkpoint
    from convert.plan.plan import Plan, make_plan
    from convert.recipe.recipe import Recipe, load_recipe, parse_recipe
    from convert.run.run import Result
    from convert.run.run import run as convert
    from convert.source.download import download, parse_source
    from convert.values import Resolution

__version__ = "0.1.0"

_FACE = {
    "Checkpoint": ("convert.checkpoint.checkpoint", "Checkpoint"),
    "Plan": ("convert.plan.plan", "Plan"),
    "Recipe": ("convert.recipe.recipe", "Recipe"),
    "Resolution": ("convert.values", "Resolution"),
    "Result": ("convert.run.run", "Result"),
    "UserError": ("convert.errors", "UserError"),
    "convert": ("convert.run.run", "run"),
    "download": ("convert.source.download", "download"),
    "load_recipe": ("convert.recipe.recipe", "load_recipe"),
    "make_plan": ("convert.plan.plan", "make_plan"),
    "open_checkpoint": ("convert.opening.door", "open_checkpoint"),
    "parse_recipe": ("convert.recipe.recipe", "parse_recipe"),
    "parse_source": ("convert.source.download", "parse_source"),
}
__all__ = list(_FACE)
__getattr__ = face(__name__, _FACE)
