"""A fixed sample of `python -m tests.support.planted`: faults are caught, sound artifacts pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.planted import plant_all, sound_all
from tests.support.plantings import Garden, every_planting

SEED = 14


@pytest.mark.slow
def test_every_kind_of_fault_is_caught_and_named(tmp_path: Path) -> None:
    rows, wrong = plant_all(Garden(tmp_path), every_planting(SEED), 44)
    assert not wrong, "\n".join(wrong)
    assert len(rows) == 44
    assert {"unet", "vae_decoder", "text_encoder"} <= {planting.component for planting in rows}


@pytest.mark.slow
def test_sound_artifacts_of_random_networks_pass(tmp_path: Path) -> None:
    count, wrong = sound_all(tmp_path, SEED, 6)
    assert (count, wrong) == (6, [])
