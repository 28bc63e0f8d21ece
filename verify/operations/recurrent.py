"""MIL's recurrent ops, step by step.

Sequences come first, then the batch: x [S, B, I]. A sequence that is run in reverse gives its
results in the order in which it was run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.operations.registry import op

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "scaled_tanh": torch.tanh,  # by its default values
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp_(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp_(0, 1),
    "relu": torch.relu,
    "linear": lambda x: x,
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}")
    return _ACTIVATIONS[name]


def _steps(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"unknown direction {direction!r}")
    return x if direction == "forward" else x.flip(0)


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h = activation(W x + b + R h): all h [S, B, H], or the last [1, B, H], and the last [B, H].

    Source: coremltools `ops/defs/{iOS15,iOS17}/recurrent.py`.
    """
    h, states = initial_h, []
    for given in F.linear(_steps(x, direction), weight_ih, bias):
        h = _activation(activation)(given + F.linear(h, weight_hh))
        states.append(h)
    return torch.stack(states if output_sequence else states[-1:]), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `rnn`, with gates: reset, output and update, in this order in weights and biases.

    Source: coremltools `ops/defs/{iOS15,iOS17,iOS18}/recurrent.py`.
    """
    gate, act = _activation(recurrent_activation), _activation(activation)
    r_weight, o_weight, z_weight = weight_hh.chunk(3)
    r_bias, o_bias, z_bias = (None,) * 3 if bias is None else bias.chunk(3)
    h, states = initial_h, []
    for given in F.linear(_steps(x, direction), weight_ih, input_bias):
        r_given, o_given, z_given = given.chunk(3, -1)
        r = gate(r_given + F.linear(h, r_weight, r_bias))
        z = gate(z_given + F.linear(h, z_weight, z_bias))
        if reset_after:
            o = act(o_given + r * F.linear(h, o_weight, o_bias))
        else:
            o = act(o_given + F.linear(r * h, o_weight, o_bias))
        h = (1 - z) * o + z * h
        states.append(h)
    return torch.stack(states if output_sequence else states[-1:]), h


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `rnn`, with a cell c and gates: input, forget, output and cell, in this order in weights.

    Both directions have their halves of the states, and of the last axis of the results; the
    results of the way back stand in the order of x.

    Source: coremltools `ops/defs/{iOS15,iOS17}/recurrent.py`.
    """
    names = (recurrent_activation, cell_activation, activation)
    if direction != "bidirectional":
        steps = _steps(x, direction)
        states, h, c = _lstm(
            steps, initial_h, initial_c, weight_ih, weight_hh, bias, peephole, names, clip
        )
        return (states if output_sequence else states[-1:]), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("the way back has no weights")
    (h, h_back), (c, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    states, h, c = _lstm(x, h, c, weight_ih, weight_hh, bias, peephole, names, clip)
    weights = (weight_ih_back, weight_hh_back, bias_back, peephole_back)
    back, h_back, c_back = _lstm(x.flip(0), h_back, c_back, *weights, names, clip)
    if output_sequence:
        states = torch.cat([states, back.flip(0)], -1)
    else:
        states = torch.cat([states[-1:], back[-1:]], -1)
    return states, torch.cat([h, h_back], -1), torch.cat([c, c_back], -1)


def _lstm(
    steps: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    activations: tuple[str, str, str],
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction: all states [S, B, H], and the last of states and cells."""
    gate, cell, act = map(_activation, activations)
    p_i, p_f, p_o = (0, 0, 0) if peephole is None else peephole.chunk(3)
    states = []
    for given in F.linear(steps, weight_ih, bias):
        i, f, o, z = (given + F.linear(h, weight_hh)).chunk(4, -1)
        c = gate(f + c * p_f) * c + gate(i + c * p_i) * cell(z)
        if clip is not None:
            c = c.clamp(-clip, clip)
        h = gate(o + c * p_o) * act(c)
        states.append(h)
    return torch.stack(states), h, c
