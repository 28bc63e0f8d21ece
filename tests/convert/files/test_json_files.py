"""Reading JSON and text from outside."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.errors import InputError
from convert.files.documents import Document, FileFacts, checked, is_local
from convert.files.json_files import (
    DEEPEST,
    FileMissing,
    parse_json,
    read_bytes,
    read_json,
    read_object,
    read_toml,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False).map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_json_is_read(value: object) -> None:
    assert parse_json(json.dumps(value), "x.json") == value
    assert parse_json("\ufeff" + json.dumps(value, ensure_ascii=False), "x.json") == value


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_an_input_error(data: bytes) -> None:
    with suppress(InputError):
        parse_json(data, "x.json")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1e999}', "number 1e999, out of range"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', 'has the key "c" twice'),
        ("1" * 5000, "not readable as JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested more than"),
        ('{"a": "\\ud83d"}', "half a surrogate pair"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text (byte 0)"),
        ("", "not readable as JSON"),
    ],
)
def test_what_only_looks_like_json_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "x.json")
    assert problem in caught.value.problem
    assert caught.value.where == "x.json"


def test_a_whole_surrogate_pair_and_infinity_where_it_is_allowed_are_read() -> None:
    assert parse_json('"\\ud83d\\ude00"', "x") == "😀"
    assert parse_json("[-Infinity]", "x", infinities=True) == [float("-inf")]
    with pytest.raises(InputError, match="NaN"):
        parse_json("[NaN]", "x", infinities=True)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(FileMissing, match=r"x\.json: missing"):
        read_json(file)
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileMissing, match="a link to nothing"):
        read_json(file)
    with pytest.raises(InputError, match="is a folder"):
        read_json(tmp_path)
    file.unlink()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_json(file)
    file.write_text("[1]")
    with pytest.raises(InputError, match="holds a list where an object is expected"):
        read_object(file)
    with pytest.raises(InputError, match="has 3 bytes; at most 2"):
        read_bytes(file, largest=2)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "a\0b")


def test_toml_of_any_depth_and_form_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("\ufeffa = 1")
    assert read_toml(file) == {"a": 1}
    for text in ("a = " + "[" * 50_000, "a = 1\na = 2", "a = " + "[" * 70 + "]" * 70):
        file.write_text(text)
        with pytest.raises(InputError, match=r"x\.toml"):
            read_toml(file)


class _Part(Document):
    size: int
    share: float | None = None


class _Whole(Document):
    parts: list[_Part]
    files: dict[str, FileFacts] | None = None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "is a list, not an object"),
        ({}, "`parts` is missing"),
        ({"parts": None}, "`parts` is null; allowed is a list"),
        ({"parts": [{"size": 1}, {"size": True}]}, "`parts[1].size` is true; allowed is a whole"),
        ({"parts": [{"size": 32.0}]}, "`parts[0].size` is the number 32.0; allowed is a whole"),
        ({"parts": [{"size": 1, "share": "1"}]}, '`parts[0].share` is the text "1"; allowed is a'),
        ({"parts": [], "files": {"a.b": 3}}, "`files.a.b` is the number 3; allowed is an object"),
        ({"parts": [], "files": {"a": {"size": -1, "sha256": ""}}}, "`files.a.size` is the number"),
    ],
)
def test_a_document_of_the_wrong_type_says_which_key_and_what_is_allowed(
    values: object, problem: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked(_Whole, values, "x.json")
    assert caught.value.problem.startswith(problem)
    assert caught.value.where == "x.json"


def test_names_that_leave_their_folder_are_told() -> None:
    assert all(map(is_local, ("a", "a/b.json", "ö 😀")))
    assert not any(map(is_local, ("", ".", "/a", "../a", "a/../../b", "a\0b", "x" * 300)))


def test_a_key_twice_among_very_many_is_found_soon() -> None:
    keys = [*range(60_000), 59_999]
    text = "{" + ", ".join(f'"{key}": 1' for key in keys) + "}"
    start = time.process_time()
    with pytest.raises(InputError, match='has the key "59999" twice'):
        parse_json(text, "x.json")
    assert time.process_time() - start < 10  # each key counted anew takes minutes
