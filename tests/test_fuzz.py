"""5,000 spoilt files: exit 0, an honest verdict or one error that names the file, never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from fuzz import fuzz, make_targets


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_value_of_any_file_is_a_crash(seed: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "source")
    (tmp_path / "work").mkdir()
    tally = fuzz(make_targets(tmp_path / "work", tmp_path / "source"), 1250, seed)
    assert sum(tally.codes.values()) == 1250
    assert not tally.faults, "\n".join(tally.faults[:20])
    assert tally.codes[2] > 500  # most of what was spoilt was noticed
