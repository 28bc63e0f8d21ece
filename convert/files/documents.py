"""Saved JSON of ours, told by pydantic models: a wrong type is an error that names file and key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from convert.errors import InputError
from convert.files.json_files import dotted, kind, shown

T = TypeVar("T", bound=BaseModel)

_WORDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of ordinary size",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
    "too_short": "a list or object that is not empty",
}


class Document(BaseModel):
    """A JSON object with the keys that we read; types are strict, and other keys may be there."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def checked(model: type[T], values: Any, where: object, *, hint: str | None = None) -> T:
    """The document that `values` are.

    Raises:
        InputError: a key is missing, or a value is not of its type; it says which of `where` and
            what is allowed, or `hint` what to do about it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = _problem(error.errors(include_url=False)[0], values)
        raise InputError(problem, where=where, hint=hint) from None


def _problem(detail: ErrorDetails, values: Any) -> str:
    path, key_at_fault = _path(detail["loc"], values)
    if detail["type"] == "missing":
        return f"`{path}` is missing"
    context = detail.get("ctx", {})
    allowed = _WORDS.get(detail["type"])
    if "expected" in context:
        allowed = str(context["expected"]).replace("'", '"')
    if allowed is None:
        allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = shown(key_at_fault) if key_at_fault is not None else kind(detail["input"])
    return f"`{path}` is {found}; allowed is {allowed}" if path else f"is {found}, not {allowed}"


def _path(loc: tuple[int | str, ...], values: Any) -> tuple[str, str | None]:
    """The path in the document; pydantic's own marks, such as of a union's member, left out."""
    steps: list[int | str] = []
    for step in loc:
        if step == "[key]":
            return dotted(steps), str(steps[-1])
        inside = isinstance(values, Mapping) and step in values
        inside |= isinstance(values, list) and isinstance(step, int) and step < len(values)
        if inside:
            values = values[step]
        elif step != loc[-1] or not isinstance(values, Mapping):
            continue
        steps.append(step)
    return dotted(steps), None


def is_local(name: str) -> bool:
    """Whether a name of a file stays in the folder that it is relative to."""
    path = Path(name)
    plain = "\0" not in name and len(name) <= 1024 and all(len(p) <= 255 for p in path.parts)
    return plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _local(name: str) -> str:
    if not is_local(name):
        raise ValueError("the name of a file in this folder")
    return name


LocalName = Annotated[str, AfterValidator(_local)]
Size = Annotated[int, Field(ge=0, le=2**63)]


class FileFacts(Document):
    """Size in bytes and SHA-256 (hex) of a file, as our manifests and records have them."""

    size: Size
    sha256: str
