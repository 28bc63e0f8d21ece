"""A training loop that goes on where it was interrupted: AdamW, cosine decay, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY = 30.0  # seconds
THREADS = 2  # each computes the gradient of a part of every batch, at its own pace


def train(
    network: nn.Module,
    loss: Callable[[int, int], Tensor],
    state: Path,
    *,
    steps: int,
    rate: float,
    say: Callable[[str], None],
) -> None:
    """Train `network` in place and leave the moving average of its weights in it.

    Args:
        network: all that is trained.
        loss: of a step's part, by both numbers, which are all that its data may depend on.
        state: the file that training goes on from, written every half minute.
        steps: number of optimizer steps.
        rate: the highest learning rate.
        say: takes a line of progress.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    begin = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average, begin = saved["average"], saved["step"]
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]

    def gradients(step: int, part: int) -> tuple[float, tuple[Tensor | None, ...]]:
        value = loss(step, part)
        return value.item(), torch.autograd.grad(value, parameters, allow_unused=True)

    pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
    first = last_saved = last_said = time.monotonic()
    smooth: float | None = None
    for step in range(begin, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        found = list(pool.map(gradients, [step] * THREADS, range(THREADS)))
        value = sum(v for v, _ in found) / THREADS
        for parameter, *parts in zip(parameters, *(g for _, g in found), strict=True):
            given = [g for g in parts if g is not None]
            parameter.grad = sum(given[1:], given[0]) / THREADS if given else None
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(network.parameters()), 1 - decay)
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        now, done = time.monotonic(), step + 1
        if now - last_said > 10 or done == steps:
            pace = (done - begin) / (now - first)
            left = (steps - done) / pace / 60
            say(f"step {done}/{steps}, loss {smooth:.4f}, {pace:.2f} steps/s, {left:.1f} min left")
            last_said = now
        if now - last_saved > SAVE_EVERY or done == steps:
            _save(state, network, optimizer, average, done)
            last_saved = now
    pool.shutdown()
    network.load_state_dict(average, strict=False)
    network.eval()


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a fiftieth, then half a cosine down to a hundredth."""
    warm = max(steps // 50, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
        },
        temporary,
    )
    temporary.rename(path)
