"""A fixed sample of `python -m tests.support.planted`: faults are caught, sound artifacts pass."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.support.planted import plant_all, sound_all
from tests.support.plantings import Garden, every_planting

SEED = 14
ATTENTIONS = ("original", "split_einsum_v2")


@pytest.mark.slow
def test_what_is_planted_is_caught_and_named(tmp_path: Path) -> None:
    every_other = islice(every_planting(SEED, ATTENTIONS), 0, None, 2)
    rows, wrong = plant_all(Garden(tmp_path, ATTENTIONS), every_other, 22)
    assert not wrong, "\n".join(wrong)
    assert len(rows) == 22
    assert {"unet", "vae_decoder", "text_encoder"} <= {planting.component for planting in rows}


@pytest.mark.slow
def test_sound_artifacts_of_random_networks_pass(tmp_path: Path) -> None:
    count, wrong = sound_all(tmp_path, SEED, 3)
    assert (count, wrong) == (3, [])
