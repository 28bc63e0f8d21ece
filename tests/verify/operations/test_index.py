"""Elements put by their indices, several at one place, and indices from the end."""

from __future__ import annotations

import pytest
import torch

from verify.operations.index import gather, scatter, scatter_nd, slice_update


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("update", 3), ("add", 15), ("sub", 5), ("mul", 60), ("div", 10 / 6), ("max", 10), ("min", 2)],
)
def test_what_is_put_at_one_place_counts_one_after_the_other(mode: str, expected: float) -> None:
    data, updates = torch.tensor([10.0, 7.0]), torch.tensor([2.0, 3.0])
    got = scatter(data, torch.tensor([0, 0]), updates, mode=mode)
    torch.testing.assert_close(got, torch.tensor([expected, 7.0]))
    assert data.tolist() == [10, 7]
    assert torch.equal(got, scatter_nd(data, torch.tensor([[0], [0]]), updates, mode=mode))


def test_an_index_from_the_end_is_an_error_where_it_is_looked_for() -> None:
    data, index = torch.tensor([10.0, 7.0]), torch.tensor([-1])
    assert gather(data, index).item() == 7
    with pytest.raises(IndexError, match="below 0"):
        gather(data, index, validate_indices=True)


def test_a_slice_is_put_back_to_front_in_the_dtype_of_what_it_is_put_in() -> None:
    x, row = torch.zeros(2, 3), torch.tensor([1, 2], dtype=torch.float16)
    put = slice_update(x, row, [1, 2], [2, 0], [1, -1], squeeze_mask=[True, False])
    assert put.tolist() == [[0, 0, 0], [0, 2, 1]]
    assert put.dtype == x.dtype
    with pytest.raises(ValueError, match=r"updates are \[3\], their places \[2\]"):
        slice_update(x, torch.zeros(3), [1, 2], [2, 0], [1, -1], squeeze_mask=[True, False])
