"""A training loop that goes on where it was interrupted: Muon, cosine decay, averaged weights.

Muon makes the updates of matrices orthogonal (https://kellerjordan.github.io/posts/muon); the toy's
networks learn in a seventh of the steps that AdamW takes. Embeddings, norms and biases have AdamW.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convert.files.appearing import appearing
from convert.process.progress import Say

SAVE_EVERY = 30.0  # seconds
ADAMW_RATE = 2e-3  # the highest
THREADS = 2  # each computes the gradient of a part of every batch, at its own pace


def train(
    network: nn.Module,
    loss: Callable[[int, int], Tensor],
    state: Path,
    *,
    steps: int,
    rate: float,
    say: Say,
) -> None:
    """Train `network` in place and leave the moving average of its weights in it.

    Args:
        network: all that is trained.
        loss: of a step's part, by both numbers, which are all that its data may depend on.
        state: the file that training goes on from, written every half minute.
        steps: number of optimizer steps.
        rate: the highest learning rate, of Muon.
        say: takes a line of progress.
    """
    pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
    optimizer = _Optimizer(network, rate, pool)
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

    first = last_saved = last_said = time.monotonic()
    smooth: float | None = None
    for step in range(begin, steps):
        found = list(pool.map(gradients, [step] * THREADS, range(THREADS)))
        value = sum(v for v, _ in found) / THREADS
        for parameter, *parts in zip(parameters, *(g for _, g in found), strict=True):
            given = [g for g in parts if g is not None]
            parameter.grad = sum(given[1:], given[0]) / THREADS if given else None
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(_schedule(step, steps))
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


class _Optimizer:
    """Muon for the weights of linear layers and convolutions, AdamW for everything else."""

    def __init__(self, network: nn.Module, rate: float, pool: Executor) -> None:
        weights = [m.weight for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        chosen = set(map(id, weights))
        # Muon takes matrices: views, whose updates change the weights themselves.
        self.matrices = [(w, nn.Parameter(w.detach().flatten(1))) for w in weights]
        views = [view for _, view in self.matrices]
        others = [p for p in network.parameters() if id(p) not in chosen]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(views[i::THREADS], weight_decay=0.01), rate) for i in range(THREADS)
        ]
        self.parts.append((torch.optim.AdamW(others, betas=(0.9, 0.99), fused=True), ADAMW_RATE))
        self.pool = pool

    def step(self, share: float) -> None:
        """Update all parameters by their gradients, at a share of the highest rates."""
        for weight, view in self.matrices:
            view.grad = None if weight.grad is None else weight.grad.flatten(1)

        def update(part: tuple[torch.optim.Optimizer, float]) -> None:
            optimizer, rate = part
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

        list(self.pool.map(update, self.parts))

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for (optimizer, _), saved in zip(self.parts, state, strict=True):
            optimizer.load_state_dict(saved)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a fiftieth, then half a cosine down to a hundredth."""
    warm = max(steps // 50, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _save(
    path: Path,
    network: nn.Module,
    optimizer: _Optimizer,
    average: dict[str, Tensor],
    step: int,
) -> None:
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
    }
    with appearing(path) as new:
        torch.save(state, new)
