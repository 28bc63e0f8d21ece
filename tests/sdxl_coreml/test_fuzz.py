"""5,000 spoilt files: exit 0, an honest verdict or one error that names the file, never a crash."""

from __future__ import annotations

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.fuzz import SHAPE, Target, fuzz, make_targets

CASES = 2500  # with each seed


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    make_checkpoint(folder / "source", **SHAPE)
    return make_targets(folder, folder / "source")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_value_of_any_file_is_a_crash(targets: list[Target], seed: int) -> None:
    tally = fuzz(targets, CASES, seed)
    assert sum(tally.codes.values()) == CASES
    assert not tally.faults, "\n".join(tally.faults[:20])
    assert tally.codes[2] > CASES // 3  # what was spoilt was mostly noticed
