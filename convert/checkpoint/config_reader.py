"""Reading a network's config.json: every key is either used, known to be harmless, or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.errors import InputError, nearest
from convert.files.json_files import shown

REQUIRED = object()
MOST = 1 << 20  # of a width or count; a mistyped one must not fill memory before it is noticed
MOST_BLOCKS = 16
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "relu", "quick_gelu")  # `convert.networks`
KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
}


class Config:
    """A config whose keys are taken one by one; `finish` refuses what nobody took.

    A setting that we do not know could change what the network computes, so it may only be there
    if it is switched off (null, false, 0, an empty text, or a list of these).
    """

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values = values
        self.where = where
        self._taken: set[str] = set()

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of `key`; raises InputError if it is missing and has no default."""
        self._taken.add(key)
        if key in self.values:
            return self.values[key]
        if default is REQUIRED:
            raise InputError(f"`{key}` is missing", where=self.where)
        return default

    def integer(
        self, key: str, default: Any = REQUIRED, *, least: int = 1, most: int = MOST
    ) -> int:
        """The value of `key`, which must be an integer between two bounds."""
        value = self.get(key, default)
        if not _is_integer(value, least, most):
            raise self.error(key, value, _integer(least, most))
        return int(value)

    def number(self, key: str, default: Any = REQUIRED, *, least: float, most: float) -> float:
        """The value of `key`, which must be a number between two bounds."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, value, f"a number from {least:g} to {most:g}")
        if not least <= value <= most:
            raise self.error(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """The value of `key`, which must be true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """The value of `key`, which must be a text."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, value, "a text")
        return value

    def activation(self, key: str, default: str) -> str:
        """The value of `key`, which must be the name of an activation that the networks have."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(key, value, " or ".join(ACTIVATIONS))
        return value

    def integers(self, key: str, default: Any = REQUIRED) -> list[int]:
        """The value of `key`, which must be a list of positive integers, one a block."""
        values = self.get(key, default)
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= MOST_BLOCKS:
            raise self.error(key, values, f"a list of 1 to {MOST_BLOCKS} widths")
        for index, value in enumerate(values):
            if not _is_integer(value, 1, MOST):
                raise self.error(f"{key}[{index}]", value, _integer(1, MOST))
        return list(values)

    def per_block(
        self, key: str, count: int, default: Any = REQUIRED, *, least: int = 1, most: int = MOST
    ) -> list[int]:
        """The value of `key` as one integer a block: a single one counts for all of them."""
        values = self._one_a_block(key, count, default)
        for index, value in enumerate(values):
            if not _is_integer(value, least, most):
                raise self.error(self._entry(key, index), value, _integer(least, most))
        return values

    def nested_per_block(
        self, key: str, counts: Sequence[int], default: Any = REQUIRED, *, least: int, most: int
    ) -> list[list[int]]:
        """The value of `key` as one integer for each of the `counts` layers of every block.

        A single integer counts for all blocks, or for all layers of its block.
        """
        found = []
        for index, value in enumerate(self._one_a_block(key, len(counts), default)):
            entry, count = self._entry(key, index), counts[index]
            values = list(value) if isinstance(value, list | tuple) else [value] * count
            if len(values) != count:
                raise self.error(entry, value, f"{count} entries, one a layer")
            for depth in values:
                if not _is_integer(depth, least, most):
                    raise self.error(entry, depth, _integer(least, most))
            found.append(values)
        return found

    def _one_a_block(self, key: str, count: int, default: Any) -> list[Any]:
        value = self.get(key, default)
        if not isinstance(value, list | tuple):
            return [value] * count
        if len(value) != count:
            raise self.error(key, value, f"{count} entries, one a block")
        return list(value)

    def _entry(self, key: str, index: int) -> str:
        return f"{key}[{index}]" if isinstance(self.values.get(key), list | tuple) else key

    def only(self, key: str, *allowed: Any) -> None:
        """Raise InputError unless `key` is absent or has one of the values we can build."""
        value = self.get(key, allowed[0])
        if isinstance(value, bool) or value not in allowed:
            raise self.error(key, value, " or ".join(shown(a) for a in allowed))

    def ignore(self, key: str, *kinds: type) -> None:
        """A key that does not change what the network computes; null, or of one of `kinds`.

        The reference is built by libraries that read it, too.
        """
        value = self.get(key, None)
        if value is not None and type(value) not in kinds:
            raise self.error(key, value, " or ".join(KINDS[k] for k in kinds))

    def error(self, key: str, value: Any, allowed: str) -> InputError:
        """The error for a value of `key` that we cannot build."""
        return InputError(
            f"`{key}` is {shown(value)}; this tool builds {allowed}",
            where=self.where,
            hint="If this is a real SDXL model, please open an issue with its config.json.",
        )

    def finish(self) -> None:
        """Raise InputError if an unknown key is switched on."""
        for key, value in self.values.items():
            if key.startswith("_") or key in self._taken or _is_off(value):
                continue
            near = nearest(key, sorted(self._taken))
            raise InputError(
                f"`{key}` is {shown(value)}, a setting that this tool does not know"
                + (f"; did you mean `{near}`?" if near else ""),
                where=self.where,
                hint="It could change what the network computes. Please open an issue.",
            )


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _integer(least: int, most: int) -> str:
    bound = f"an integer from {least} to {most}"
    return "a positive integer" if (least, most) == (1, MOST) else bound


def _is_off(value: Any) -> bool:
    """Whether a setting is switched off: null, false, 0, empty, or a list of nothing else."""
    if isinstance(value, list | tuple):
        return all(map(_is_off, value))
    return value in (None, False, 0, "", {})


def block_type(config: Config, key: str, types: tuple[str, ...]) -> list[str]:
    """The list of block types under `key`; raises InputError for a type we cannot build."""
    names = config.get(key)
    if not isinstance(names, list | tuple) or not 1 <= len(names) <= MOST_BLOCKS:
        raise config.error(key, names, f"a list of 1 to {MOST_BLOCKS} block types")
    for index, name in enumerate(names):
        if name not in types:
            near = nearest(str(name), list(types))
            raise InputError(
                f"`{key}[{index}]` is {shown(name)}, an unknown block type"
                + (f"; did you mean {shown(near)}?" if near else ""),
                where=config.where,
                hint=f"Known: {', '.join(types)}.",
            )
    return list(names)
