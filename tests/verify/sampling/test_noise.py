"""Recorded noise: the same in every run, for the block alone, and never more or less of it."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from convert.errors import CannotExecute
from verify.sampling.noise import Noise, RecordedNoise


def draw(*shape: int) -> torch.Tensor:
    return randn_tensor(shape, generator=None, device=torch.device("cpu"), dtype=torch.float32)


def test_a_seed_gives_the_same_noise_under_every_torch() -> None:
    with Noise(7) as first:
        drawn = [draw(1, 4, 8, 8), draw(2, 3)]
    assert [tuple(t.shape) for t in first.given] == [(1, 4, 8, 8), (2, 3)]
    with Noise(7):
        assert torch.equal(draw(1, 4, 8, 8), drawn[0])
    with Noise(8):
        assert not torch.equal(draw(1, 4, 8, 8), drawn[0])


def test_outside_the_block_nothing_has_changed() -> None:
    torch.manual_seed(0)
    before = draw(3, 3)
    with Noise(0):
        draw(3, 3)
    torch.manual_seed(0)
    assert torch.equal(draw(3, 3), before)


def test_a_replay_gives_what_was_recorded_and_notices_another_run() -> None:
    with Noise(1) as recorded:
        first, second = draw(2, 2), draw(3)
    with RecordedNoise(recorded.given) as replay:
        assert torch.equal(draw(2, 2), first)
        with pytest.raises(CannotExecute, match="drew noise 1 times"):
            replay.finish()
        with pytest.raises(CannotExecute, match=r"draws noise \[4\], the recording has \[3\]"):
            draw(4)
    with RecordedNoise(recorded.given) as replay:
        draw(2, 2).zero_()  # what a sampler does with it is its own affair
        assert torch.equal(draw(3), second)
        replay.finish()
        with pytest.raises(CannotExecute, match="more than the 2 times"):
            draw(3)
    assert torch.equal(recorded.given[0], first)
