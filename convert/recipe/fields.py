"""The types of a recipe's fields: checked values that say what is wrong with a bad one."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from convert.errors import InputError
from convert.recipe.errors import refusal, written, wrong_type
from convert.source.url import Url
from convert.values import (
    GROUP_SIZES,
    MIXED_BITS_PATTERN,
    PLAIN_BITS,
    RESOLUTION_PATTERN,
    Bits,
    Resolution,
    parse_bits,
)

T = TypeVar("T")

LONGEST_NAME = 100  # characters of what artifacts' names start with
_LONGEST_FILE = 240  # bytes; file systems take 255, and archives get suffixes

_HUB_REPO = r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"


def _resolution(value: object) -> Resolution:
    if isinstance(value, Resolution):
        return value
    if not isinstance(value, str):
        raise refusal(wrong_type('a string such as "832x1216"', value))
    try:
        return Resolution.parse(value)
    except InputError as error:
        raise refusal(error.problem, error.hint) from error


def _bits(value: object) -> Bits:
    if not isinstance(value, str):
        raise refusal(wrong_type("a string", value, "string"))
    try:
        return parse_bits(value)
    except InputError as error:
        raise refusal(error.problem, error.hint) from error


def _one_width(value: object) -> Bits:
    bits = _bits(value)
    if bits not in PLAIN_BITS:
        raise refusal(f"`{bits}` is an average; one width is needed here")
    return bits


def _as_tuple(value: object) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise refusal(wrong_type("a list", value, "list"))


def _as_tables(value: object) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise refusal(wrong_type("a list of tables", value))


def _no_duplicates(values: tuple[T, ...]) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise refusal(f"`{value}` is listed twice", at=f"[{index}]")
    return values


def is_hub_repo(value: str) -> bool:
    """Whether `value` has the form of a Hub repository's name, owner/name."""
    return re.fullmatch(_HUB_REPO, value) is not None


def require_hub_repo(value: str) -> None:
    """Raise InputError unless `value` has that form."""
    if not is_hub_repo(value):
        raise InputError(f"`{value}` is not a Hub repository (owner/name)")


def check_hub_repo(value: str) -> str:
    """Checked to be owner/name."""
    if is_hub_repo(value):
        return value
    page = re.match(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({_HUB_REPO})", value)
    raise refusal(
        f"{written(value)} is not a Hub repository (owner/name)",
        f"did you mean `{page[1]}`?" if page else "local checkpoints are `path`, links `url`",
    )


def check_file_name(value: str) -> str:
    """Checked to be one folder name on every system, and no option on a command line."""
    if not value.strip():
        raise refusal("must not be empty")
    bad = re.search(r'[/\\<>:"|?*\x00-\x1f\x7f]', value)
    if bad:
        raise refusal(f"{written(value)} contains {written(bad[0])}, which file names must not")
    if value[0] in ".-" or value != value.strip() or value[-1] == ".":
        raise refusal(f"{written(value)} starts or ends with a character that file names must not")
    if len(value.encode("utf-8", "surrogateescape")) > _LONGEST_FILE:
        raise refusal(f"{written(value)} is longer than file names can be")
    return value


def check_url(value: str) -> str:
    """Checked to be an http or https link with a path."""
    if not re.match(r"https?://[^/\s]+/\S+$", value):
        raise refusal(f"{written(value)} is not a link; it starts with https://")
    return value


def check_download_link(value: str) -> str:
    """Checked to be a link to a file, without a secret: recipes are shown and recorded."""
    check_url(value)
    try:
        url = Url(value)
    except InputError as error:
        raise refusal(f"{written(value)} is {error.problem}", error.hint) from None
    if secret := url.secret:
        raise refusal(f"holds {secret}, and recipes are recorded", "give it as SDXL_COREML_TOKEN")
    return value


def check_sha256(value: str) -> str:
    """Checked to be a SHA-256 in hex; in lower case from here on."""
    if not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise refusal(f"{written(value)} is not a SHA-256: 64 digits from 0 to f")
    return value.lower()


def check_base(value: str) -> str:
    """Checked to hold no secret, if it is a link."""
    return check_download_link(value) if value.startswith(("http://", "https://")) else value


Text = Annotated[str, Field(min_length=1)]
BaseText = Annotated[str, Field(min_length=1), AfterValidator(check_base)]
Link = Annotated[str, AfterValidator(check_url)]
DownloadLink = Annotated[str, AfterValidator(check_download_link)]
Sha256 = Annotated[str, AfterValidator(check_sha256)]
HubRepo = Annotated[str, AfterValidator(check_hub_repo)]
ManyOf = Annotated[tuple[T, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
ManyOrNone = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
TablesOf = Annotated[tuple[T, ...], BeforeValidator(_as_tables)]
EachOnce = Annotated[ManyOf[T], AfterValidator(_no_duplicates)]
ResolutionText = Annotated[
    Resolution,
    PlainValidator(_resolution),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": RESOLUTION_PATTERN}),
]
BitsText = Annotated[
    Bits,
    PlainValidator(_bits),
    WithJsonSchema(
        {"anyOf": [{"enum": list(PLAIN_BITS)}, {"type": "string", "pattern": MIXED_BITS_PATTERN}]}
    ),
]
WidthText = Annotated[Bits, PlainValidator(_one_width), WithJsonSchema({"enum": list(PLAIN_BITS)})]
GroupSize = Annotated[int, Field(ge=GROUP_SIZES[0], le=GROUP_SIZES[1])]
