"""pydantic's validation errors, told in the words of TOML: key, value, what is allowed."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from convert.errors import InputError
from convert.files.json_files import dotted
from convert.values import suggestion

# Said where it is asked for. Sources: diffusers' `clip_skip` None is hidden_states[-2] of both text
# encoders, ComfyUI's default for SDXL is -2, too, and web UIs leave it out for SDXL.
CLIP_SKIP = (
    "SDXL always has what model cards call clip skip 2 (the last hidden states but one of both "
    "text encoders), and so have the models made here; leave it out"
)
_KINDS = {"string": "a string", "int": "an integer", "float": "a number", "model": "a table"}


def refusal(
    problem: str, hint: str | None = None, *, at: str = "", option: str | None = None
) -> PydanticCustomError:
    """The error for a validator to raise.

    Args:
        problem: what is wrong; it stands after the key's path.
        hint: what was probably meant.
        at: the path of the key at fault, where it is not the validated one; starting with "["
            or ".", the rest of that path.
        option: the whole text where options stand for the recipe, and `hint` is about TOML.
    """
    text = problem if hint is None else f"{problem}; {hint}"
    # A template's own braces would be filled in by pydantic, so the text travels as a value.
    return PydanticCustomError(
        "refused", "{text}", {"text": text, "at": at, "option": option or text}
    )


def explain(
    error: ValidationError, model: type[BaseModel], options: Mapping[str, str] | None = None
) -> list[str]:
    """One line for each thing wrong with a TOML file: `matrix.attention[1]: …`.

    Args:
        options: what a person typed for the recipe's keys, where it was made of options; the lines
            speak of these: `--attention: …`.
    """
    return [_line(detail, model, options) for detail in error.errors(include_url=False)]


def refused(
    error: ValidationError,
    model: type[BaseModel],
    where: object,
    options: Mapping[str, str] | None = None,
) -> InputError:
    """All that is wrong with a file's values, a line for each; arguments as `explain`'s."""
    lines = explain(error, model, options)
    listed = lines if len(lines) == 1 else [f"{len(lines)} errors", *lines]
    return InputError("\n  ".join(listed), where=where)


def _line(detail: ErrorDetails, model: type[BaseModel], options: Mapping[str, str] | None) -> str:
    path = dotted(detail["loc"])
    context = detail.get("ctx", {})
    at = context.get("at", "")
    if at:
        path = path + at if at[0] in "[." else at
    if options is None:
        problem = _problem(detail, model)
        return f"{path}: {problem}" if path else problem
    problem = context["option"] if detail["type"] == "refused" else _problem(detail, model)
    typed = (option for key, option in options.items() if re.match(rf"{key}(\W|$)", path))
    return f"{next(typed, path)}: {problem}"


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "refused":
        return str(context["text"])
    if kind == "extra_forbidden":
        key = str(detail["loc"][-1])
        return _clip_skip(value) if is_clip_skip(key) else _unknown_key(detail["loc"], model)
    if kind == "missing":
        return f"missing{_example(detail['loc'], model)}"
    if kind == "literal_error":
        return not_allowed(value, _choices(detail["loc"], model))
    if kind in {"too_short", "string_too_short"}:
        return f"must not be empty{_example(detail['loc'], model)}"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, not {len(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {written(value)}"
    for limit, words in (("ge", "at least"), ("le", "at most")):
        if limit in context:
            return f"must be {words} {context[limit]}, not {written(value)}"
    for prefix, noun in _KINDS.items():
        if kind in {f"{prefix}_type", f"{prefix}_from_float"}:
            return wrong_type(noun, value, "string" if prefix == "string" else None)
    return f"{detail['msg']}, not {written(value)}"


def wrong_type(noun: str, value: object, write: str | None = None) -> str:
    """The problem of a value that is not `noun`; `write` names a type it can be rewritten as."""
    text = f"must be {noun}, not {_type_name(value)}"
    scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    if scalar and write == "list":
        return f"{text}; write [{written(value)}]"
    if scalar and write == "string":
        return f'{text}; write "{value}"'
    return text


def written(value: object) -> str:
    """A value as TOML writes it, cut where it is long."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    # TOML spells nan and inf as Python does, and everything else as JSON does.
    plain = isinstance(value, float)
    text = str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:76]}…"


def _type_name(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        return written(value)
    nouns = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return f"the {nouns.get(type(value), 'value')} {written(value)}"


def not_allowed(value: object, allowed: tuple[str, ...]) -> str:
    """The problem of a value that is none of those allowed, and which was probably meant."""
    if not isinstance(value, str):
        return f"must be one of {', '.join(allowed)}, not {_type_name(value)}"
    text = f"{written(value)} is not one of {', '.join(allowed)}"
    meant = suggestion(value.replace("-", "_"), allowed)
    return f"{text}; did you mean `{meant}`?" if meant else text


def is_clip_skip(name: str) -> bool:
    """Whether a key or option asks for CLIP's skipped layers, as people spell it.

    >>> is_clip_skip("clip_skip"), is_clip_skip("--CLIP-skip"), is_clip_skip("clip")
    (True, True, False)
    """
    return re.sub(r"[^a-z]", "", name.lower()) in ("clipskip", "clipskips", "skipclip")


def _clip_skip(value: object) -> str:
    """Why nobody has to ask for clip skip, and why no other than 2 can be had."""
    if value in (2, -2, "2"):
        return f"is no setting: {CLIP_SKIP}"
    return f"{written(value)} cannot be had, only the layer that SDXL is trained with: {CLIP_SKIP}"


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    key, table = str(loc[-1]), _table(loc[:-1], model)
    assert table is not None  # pydantic reports unknown keys only inside a table
    known = tuple(table.model_fields)
    later: Mapping[str, str] = getattr(table, "LATER", {})
    if key in later:
        return f"cannot be used by this version; {later[key]}"
    # A key written after a [section] header belongs to that section; say where it was meant to be.
    homes = [place for place, fields in _tables(model) if key in fields]
    if homes and key not in known:
        home = f"in [{homes[0]}]" if homes[0] else "at the top, before the first [section]"
        return f"unknown key; `{key}` belongs {home}"
    meant = suggestion(key, known)
    return "unknown key; " + (
        f"did you mean `{meant}`?" if meant else f"the keys here are {', '.join(known)}"
    )


def _tables(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    yield prefix, set(model.model_fields)
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _tables(field.annotation, f"{prefix}.{name}" if prefix else name)


def _annotation(loc: tuple[int | str, ...], model: type[BaseModel]) -> Any:
    """The annotation of the value at `loc`, seen through `X | None` and through lists."""
    found: Any = model
    for step in loc:
        index = isinstance(step, int)
        found = get_args(found)[0] if index else found.model_fields[step].annotation
        if get_origin(found) in {Union, types.UnionType}:
            found = next(choice for choice in get_args(found) if choice is not type(None))
    return found


def _table(loc: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    found = _annotation(loc, model)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _choices(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(_annotation(loc, model))


def _example(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    *parent, name = loc
    table = _table(tuple(parent), model)
    if table is None or not isinstance(name, str):
        return ""
    examples = table.model_fields[name].examples
    return f"; for example {name} = {json.dumps(examples[0])}" if examples else ""
