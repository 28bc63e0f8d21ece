"""Garbage is not looked for meanwhile, and is afterwards, whatever happened."""

from __future__ import annotations

import gc

import pytest

from convert.process.memory import uncollected


def test_collection_goes_on_as_it_was() -> None:
    def fail() -> None:
        with uncollected():
            with uncollected():
                pass
            assert not gc.isenabled()
            raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()
