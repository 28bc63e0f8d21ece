"""Pickles as data: what Python would make of plain values, and never a call."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.errors import InputError
from convert.files.pickle_values import Made, Named, read_pickle

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary()
    | st.floats(allow_nan=False)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, protocol=st.integers(2, 5))
def test_plain_values_are_what_python_reads(value: Any, protocol: int) -> None:
    names = (("collections", "OrderedDict"), ("_codecs", "encode"), ("__builtin__", "bytes"))
    allowed = {Named(*name) for name in names}
    data = b"before" + pickle.dumps(value, protocol) + b"after"
    found, end = read_pickle(data, "x", start=6, allowed=allowed.__contains__)
    assert data[end:] == b"after"
    assert plain(found) == plain(value)


def plain(value: Any) -> Any:
    """The value with its dictionaries unordered, and bytes as old protocols spell them."""
    if isinstance(value, Made):
        return value.arguments[0].encode("latin1") if value.arguments else b""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    for whole in (data, b"\x80\x02" + data + b"."):
        with suppress(InputError):
            read_pickle(whole, "x", persistent=lambda identifier: 0)


def test_an_object_is_a_note_of_its_class_and_arguments() -> None:
    data = pickle.dumps(InputError("wrong", where="here"), 2)
    seen = []
    found, _ = read_pickle(data, "x", allowed=lambda named: seen.append(named) is None)
    assert str(found.by) == "convert.errors._rebuild"
    assert found.arguments == (Named("convert.errors", "InputError"), "wrong", "here", None)
    assert {str(named) for named in seen} == {str(found.by), "convert.errors.InputError"}
    with pytest.raises(InputError, match=r"its pickle names `convert\.errors\._rebuild`"):
        read_pickle(data, "x")
