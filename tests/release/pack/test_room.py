"""Room for archives: foretold by a plan, less what is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.plan.estimate import archive_bytes, estimate
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from release.pack.room import NoRoom, Room, free_at, require_room, room_for

RECIPE = """
name = "base"
source.path = "base"
matrix = { attention = ["original", "split_einsum"], resolution = ["64x96"] }
"""


def test_a_run_needs_room_for_what_is_not_there(
    base: Checkpoint, base_artifact: Path, tmp_path: Path
) -> None:
    plan, out = make_plan(parse_recipe(RECIPE, where="test"), base), tmp_path / "out"
    archives = archive_bytes(plan)
    room = room_for(plan, out)
    assert room.archives == sum(archives.values())
    assert room.artifacts == estimate(plan, plan.jobs).bytes
    assert not out.exists()
    # One of the two is there: all weights, and all graphs but one.
    shutil.copytree(base_artifact, out / base_artifact.name, copy_function=os.link)
    graphs = room.artifacts - estimate(plan, plan.jobs).weight_bytes
    assert 0 < room_for(plan, out).artifacts < graphs
    (out / "release").mkdir()
    (out / "release" / f"{base_artifact.name}.zip.001").touch()
    assert room_for(plan, out).archives == archives["base_original_16-bit_64x96"]


@pytest.mark.parametrize(
    ("room", "will_do"),
    [
        (Room(archives=70, artifacts=30, free=100), True),
        (Room(archives=71, artifacts=30, free=100), False),
        (Room(archives=0, artifacts=300, free=100), True),  # none is left to make
    ],
)
def test_room_is_for_artifacts_and_archives(room: Room, will_do: bool) -> None:
    assert room.will_do == will_do
    assert ("goes on without archives" in str(room)) != will_do


def test_room_is_asked_of_the_disk_that_a_new_folder_will_be_on(tmp_path: Path) -> None:
    new = tmp_path / "a" / "b"
    assert free_at(new) > 0
    require_room(new, 1)
    with pytest.raises(NoRoom, match="no space"):
        require_room(new, 1 << 62)
