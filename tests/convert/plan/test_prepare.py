"""From a recipe to its plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from convert.plan import gather as gathering
from convert.plan.prepare import prepare
from convert.process.progress import Silent
from convert.recipe.options import Added, recipe_from_options
from convert.recipe.recipe import Recipe, parse_recipe
from convert.source.download import CheckpointSource, Snapshot, parse_source
from convert.toy import write_toy_file

RECIPE = """
name = "toy"
source.path = "PATH"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["16"] }
"""


def recipe(path: Path) -> Recipe:
    return parse_recipe(RECIPE.replace("PATH", str(path)), where="test")


def test_the_checkpoint_is_the_recipes_or_the_one_that_is_given(toy: Path, tmp_path: Path) -> None:
    own = prepare(recipe(toy), None, Silent())
    assert own.source == CheckpointSource("path", str(toy))
    given = prepare(recipe(tmp_path / "none"), str(toy), Silent())
    assert given.snapshot.path == own.snapshot.path == toy
    assert given.plan.jobs == own.plan.jobs
    assert own.plan.checkpoint.name == toy.name


def test_an_empty_source_is_no_source(toy: Path) -> None:
    with pytest.raises(InputError, match="no such folder or file"):
        prepare(recipe(toy), "", Silent())


def test_a_glob_that_matches_nothing_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches none of the artifacts"):
        prepare(recipe(tmp_path / "none"), None, Silent(), only="none*")


def test_a_base_is_fetched_from_the_whole_address_that_was_given(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe's text has it without the query, which may hold a secret."""
    address = "https://example.com/base?token=secret"
    file = tmp_path / "toy.safetensors"
    write_toy_file(file)
    asked: list[CheckpointSource] = []

    def fetch(source: CheckpointSource, *_: object, **__: object) -> Snapshot:
        asked.append(source)
        return Snapshot(toy if source.url else file, None, None, ())

    monkeypatch.setattr(gathering, "fetch", fetch)
    added = Added(base=address)
    made = recipe_from_options(str(file), added=added)
    assert made.source.base == "https://example.com/base"
    prepare(made, parse_source(str(file)), Silent(), ingredients=added.ingredients())
    assert [source.url.address for source in asked if source.url] == [address]
