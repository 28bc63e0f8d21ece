"""Products of operands of several dtypes."""

from __future__ import annotations

import pytest
import torch

from verify.operations.linear import conv, linear, matmul

INTEGERS, FLOATS = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), torch.eye(2) * 0.5


def test_an_integer_constant_beside_floats() -> None:
    half = INTEGERS.float() / 2
    assert torch.equal(matmul(INTEGERS, FLOATS), half)
    assert torch.equal(matmul(FLOATS, INTEGERS), half)
    assert torch.equal(
        linear(FLOATS, INTEGERS.mT, torch.tensor([0, 1])), half + torch.tensor([0, 1])
    )
    image = FLOATS.reshape(1, 1, 2, 2)
    assert conv(image, INTEGERS.reshape(1, 1, 2, 2)).item() == pytest.approx(2.5)


def test_integers_alone_stay_exact() -> None:
    large = torch.tensor([[2**24 + 1]], dtype=torch.int32)
    assert matmul(large, torch.ones(1, 1, dtype=torch.int32)).item() == 2**24 + 1
