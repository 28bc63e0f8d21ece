"""What one app concludes of a bundle, and the lenient looks at it that several apps share."""

from __future__ import annotations

from dataclasses import dataclass, field

from release.lint.swift import Undecodable, metadata, shape
from release.lint.tree import Tree


@dataclass(frozen=True)
class Message:
    """Why an app does not use a bundle as it should: the rule, the file and what its user sees."""

    rule: str
    file: str
    problem: str
    effect: str


@dataclass
class AppView:
    """What one app concludes. None: it does not ask, or does not get so far."""

    app: str
    listed: bool = True  # whether the app shows the bundle as a model
    attention: str | None = None  # original or split_einsum; the apps know no others
    is_sdxl: bool | None = None
    width: int | None = None
    height: int | None = None
    image_to_image: bool = False
    messages: list[Message] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether its user gets images."""
        return self.listed and not self.messages

    @property
    def size(self) -> str | None:
        """Width × height in pixels, as in 832x1216."""
        return f"{self.width}x{self.height}" if self.width and self.height else None

    def report(self, rule: str, file: str, problem: str, effect: str) -> None:
        """Add one.

        Args:
            rule: one of `release.lint.rules`.
            file: path in the bundle.
            problem: what is wrong with the file.
            effect: what the app does then.
        """
        self.messages.append(Message(rule, file, problem, effect))


def exists(tree: Tree, model: str) -> bool:
    """Whether a compiled model is there, as FileManager.fileExists asks."""
    return any(path.startswith(f"{model}.mlmodelc/") for path in tree.files)


def model_inputs(tree: Tree, model: str) -> dict[str, list[int]]:
    """A model's inputs with their shapes, as far as its metadata tells them."""
    try:
        entry = metadata(tree, model)[0]
        return {str(i["name"]): shape(str(i["shape"])) for i in entry["inputSchema"]}
    except (Undecodable, LookupError, TypeError):
        return {}


def feature_names(tree: Tree, model: str, key: str) -> list[str]:
    """The names of a model's inputs or outputs, as far as its metadata tells them."""
    try:
        return [str(feature["name"]) for feature in metadata(tree, model)[0][key]]
    except (Undecodable, LookupError, TypeError):
        return []
