"""One package by itself, at the efforts that execute it at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.values import DEFAULT_LEVELS, Resolution
from tests.support.checkpoints import make_checkpoint, write_component
from verify.question import Question
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (320, 448)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("alone") / "tiny"))


@pytest.mark.parametrize("bits", ["16", "6"])
def test_a_package_is_proven_by_a_small_one_and_one_look(
    source: Checkpoint, tmp_path: Path, bits: str
) -> None:
    package = tmp_path / "Unet.mlpackage"
    write_component(package, source, "unet", size=SIZE, attention="split_einsum", bits=bits)
    results = verify(package, source, Question(levels=DEFAULT_LEVELS, effort="standard"))
    assert results, [check for check in results.checks if check.verdict != "pass"]
    assert results.evidence == {"unet": ["weights", "graph", "numbers 224x288", "t=999 320x448"]}
    compared = {(c.case, c.size) for c in results.checks if c.level == "conversion"}
    small = Resolution(224, 288)
    halves = [f"t={t} {half}" for t in (999, 500, 37) for half in ("uncond", "cond")]
    assert compared == {
        *((case, small) for case in halves),
        *((case, None) for case in halves[:2]),
    }
    quick = verify(package, source, Question(levels=DEFAULT_LEVELS, effort="quick"))
    assert quick.evidence == {"unet": ["weights", "graph", "numbers 224x288"]}


def test_a_small_package_is_executed_itself(source: Checkpoint, tmp_path: Path) -> None:
    package = tmp_path / "VAEDecoder.mlpackage"
    write_component(package, source, "vae_decoder", size=(64, 64))
    results = verify(package, source, Question(levels=DEFAULT_LEVELS, effort="standard"))
    assert results
    assert results.evidence == {"vae_decoder": ["weights", "graph", "numbers 64x64"]}


def test_an_effort_and_timesteps_contradict_each_other(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an effort chooses sizes and timesteps; so does"):
        verify(tmp_path, source, Question(effort="quick", timesteps=[999]))
