"""Memory of dropped values is used again, and never while somebody uses it."""

from __future__ import annotations

import pytest
import torch

from verify.operations.linear import einsum
from verify.operations.reduce import softmax
from verify.operations.strides import dense_strides, is_laid_out, like_strides
from verify.runtime.memory import SLACK, SMALLEST, Memory
from verify.runtime.values import Values, storage

COUNT = SMALLEST // 4  # fp32 elements of the smallest block that is kept


def test_a_block_is_used_again_in_any_shape_and_dtype() -> None:
    memory = Memory()
    first = memory.empty((2, COUNT), torch.float32)
    place = storage(first)
    memory.give(first)
    assert memory.idle == 2 * SMALLEST
    again = memory.empty((COUNT, 4), torch.float16)
    assert (storage(again), again.shape, again.dtype) == (place, (COUNT, 4), torch.float16)
    assert again.is_contiguous()
    assert memory.idle == 0
    assert storage(memory.empty((COUNT, 4), torch.float16)) != place


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    memory = Memory()
    blocks = [memory.empty((n, COUNT), torch.float32) for n in (4, 2, 3)]
    for block in blocks:
        memory.give(block)
    assert storage(memory.empty((2, COUNT), torch.float32)) == storage(blocks[1])
    assert storage(memory.empty((2, COUNT), torch.float32)) == storage(blocks[2])
    too_small = memory.empty((int(4 / SLACK) - 1, COUNT), torch.float32)
    assert storage(too_small) != storage(blocks[0])


def test_what_lies_idle_is_bounded_and_the_oldest_goes_first() -> None:
    memory = Memory(spare=5 * SMALLEST)
    blocks = [memory.empty((2, COUNT), torch.float32) for _ in range(3)]
    for block in (*blocks, blocks[2]):  # given twice, kept once
        memory.give(block)
    assert memory.idle == 4 * SMALLEST
    taken = {storage(memory.empty((2, COUNT), torch.float32)) for _ in range(2)}
    assert taken == {storage(blocks[1]), storage(blocks[2])}
    memory.give(blocks[1])
    memory.clear()
    assert memory.idle == 0


def test_small_tensors_are_left_to_the_allocator() -> None:
    memory = Memory()
    memory.give(memory.empty((COUNT - 1,), torch.float32))
    assert memory.idle == 0


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_a_copy_has_the_values_and_a_dense_layout(layout: str) -> None:
    x = torch.randn(512, 1024)
    x = {
        "contiguous": x,
        "transposed": x.T,
        "sliced": torch.randn(512, 2048)[:, ::2],
        "expanded": torch.randn(512, 1).expand(512, 1024),
    }[layout]
    copy = Memory().copy(x, torch.float16)
    assert torch.equal(copy, x.half())
    dense = layout in ("contiguous", "transposed")
    assert copy.stride() == (x.stride() if dense else (1024, 1))
    assert (dense_strides(x) is not None) == dense


def test_a_value_gives_its_memory_when_its_last_view_is_dropped() -> None:
    memory = Memory()
    values = Values(memory)
    values.put("x", torch.zeros(COUNT))
    values.put("view", values.tensors["x"].reshape(2, -1))
    values.put("input", torch.zeros(COUNT))
    values.share("input")
    values.drop("x")
    assert memory.idle == 0
    assert values.hold(values.tensors["view"])
    values.drop("view")
    assert memory.idle == SMALLEST
    values.drop("input")
    assert memory.idle == SMALLEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_weights_are_laid_out_as_their_softmax_reads_them(dtype: torch.dtype) -> None:
    """split_einsum's weights [B, T, 1, S], whose softmax goes over T."""
    key, query = torch.randn(2, 9, 1, 4), torch.randn(2, 4, 1, 12)
    weights = einsum([key, query], "nchw,nwhu->nchu")
    assert weights.stride(1) == 1
    torch.testing.assert_close(weights, torch.einsum("nchw,nwhu->nchu", key, query))
    weights = weights.to(dtype)
    expected = torch.softmax(weights.float(), 1).to(dtype)
    found = softmax(weights, 1, out=weights)
    step = 1e-6 if dtype == torch.float32 else 1e-3  # one rounding
    torch.testing.assert_close(found, expected, rtol=step, atol=0)
    assert storage(found) == storage(weights)


def test_what_is_computed_lies_as_its_input_does() -> None:
    channels_last = torch.empty(2, 5, 1, 7).transpose(1, 3).contiguous().transpose(1, 3)
    sliced = channels_last[:, :3]
    assert dense_strides(sliced) is None
    made = torch.empty_strided(sliced.shape, like_strides(sliced))
    assert is_laid_out(made, torch.empty(2, 1, 7, 3).permute(0, 3, 1, 2).stride())
    assert not made.is_contiguous()
    plain = torch.empty(2, 3, 1, 7)
    assert is_laid_out(plain, like_strides(plain))
    assert is_laid_out(plain, None)
    assert not is_laid_out(made, None)
    assert like_strides(torch.empty(1, 3).expand(2, 3)) is None
