"""Reading a network's config.json: every key is either used, known to be harmless, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import InputError, nearest

REQUIRED = object()


class Config:
    """A config whose keys are taken one by one; `finish` refuses what nobody took.

    A setting that we do not know could change what the network computes, so it may only be there
    if it is switched off (None, False, 0, an empty string or list).
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

    def integer(self, key: str, default: Any = REQUIRED) -> int:
        """The value of `key`, which must be a positive integer."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, value, "a positive integer")
        return value

    def per_block(self, key: str, count: int, default: Any = REQUIRED) -> list[Any]:
        """The value of `key` as one entry a block: a single value counts for all of them."""
        value = self.get(key, default)
        if not isinstance(value, list | tuple):
            return [value] * count
        if len(value) != count:
            raise self.error(key, value, f"{count} entries, one a block")
        return list(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Raise InputError unless `key` is absent or has one of the values we can build."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise self.error(key, value, " or ".join(repr(a) for a in allowed))

    def ignore(self, *keys: str) -> None:
        """Keys that do not change what the network computes."""
        self._taken.update(keys)

    def error(self, key: str, value: Any, allowed: str) -> InputError:
        """The error for a value of `key` that we cannot build."""
        return InputError(
            f"`{key}` is {value!r}; this tool builds {allowed}",
            where=self.where,
            hint="If this is a real SDXL model, please open an issue with its config.json.",
        )

    def finish(self) -> None:
        """Raise InputError if an unknown key is switched on."""
        for key, value in self.values.items():
            if key.startswith("_") or key in self._taken or value in (None, False, 0, "", [], {}):
                continue
            near = nearest(key, sorted(self._taken))
            raise InputError(
                f"`{key}` is {value!r}, a setting that this tool does not know"
                + (f"; did you mean `{near}`?" if near else ""),
                where=self.where,
                hint="It could change what the network computes. Please open an issue.",
            )


def block_type(config: Config, key: str, types: tuple[str, ...]) -> list[str]:
    """The list of block types under `key`; raises InputError for a type we cannot build."""
    names = config.get(key)
    if not isinstance(names, list | tuple) or not names:
        raise config.error(key, names, "a list of block types")
    for index, name in enumerate(names):
        if name not in types:
            near = nearest(str(name), list(types))
            raise InputError(
                f"`{key}[{index}]` is {name!r}, an unknown block type"
                + (f"; did you mean {near!r}?" if near else ""),
                where=config.where,
                hint=f"Known: {', '.join(types)}.",
            )
    return list(names)
