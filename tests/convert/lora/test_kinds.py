"""Every kind of LoRA on every kind of weight, beside the programs that train them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convert.checkpoint.tensors import StoredTensor
from convert.checkpoint.weights import read_weights
from convert.lora import merge
from convert.lora.kinds import require_fit
from convert.lora.merge import LoraChange, MergedTensor
from convert.lora.read import read_lora
from tests.support.loras import ALPHA, MAKERS, NEEDS_KERNEL, RANK, Tensors, tensors_of, write_lora
from tests.support.tensors import half_steps

SHAPES = {"linear": (32, 24), "conv": (32, 16, 3, 3), "one by one": (32, 16, 1, 1)}
NORMS = {"difference", "replacement", "norm"}  # also for weights of one axis
CASES = [
    (kind, layer)
    for kind in MAKERS
    for layer in SHAPES
    if layer == "conv" or kind not in NEEDS_KERNEL
]
Oracle = Callable[[str, torch.Tensor, Tensors, float], torch.Tensor]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as small as these come in more than one block."""
    monkeypatch.setattr(merge, "BLOCK", 100)
    monkeypatch.setattr(merge, "ROWS", 4)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """The merged weight by lycoris-lora (slow to import), in float32.

    Not by its modules' `get_merged_weight` for LoHa and LoKr, which has alpha ÷ rank twice, where
    their forward, so training, has it once; Tucker's LoKr has another rank there.
    """
    from lycoris import functional, modules
    from lycoris.functional.general import weight_decompose

    def delta(kind: str, t: Tensors) -> torch.Tensor:
        if "LoKr" in kind:
            names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
            parts = [t.get(f".lokr_{name}") for name in names]
            gamma = ALPHA
            if ".lokr_t2" in t and ".lokr_w1" in t:
                gamma *= parts[4].shape[1] / RANK  # it divides by that, not by the rank
            return functional.lokr.diff_weight(*parts, gamma=gamma)
        if "LoHa" in kind:
            names = ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")
            parts = [t.get(f".hada_{name}") for name in names]
            return functional.loha.diff_weight(*parts, gamma=ALPHA / RANK)
        parts = [t.get(f".lora_{name}.weight") for name in ("down", "up", "mid")]
        return functional.locon.diff_weight(*parts, gamma=ALPHA / RANK)

    def by_module(kind: str, weight: torch.Tensor, t: Tensors, strength: float) -> torch.Tensor:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        if weight.ndim == 4:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
        layer.weight.copy_(weight)
        if kind.startswith("(IA)³"):
            module = modules.IA3Module("x", layer, train_on_input=bool(t[".on_input"]))
            module.weight.copy_(t[".weight"])
        elif kind == "GLoRA":
            parts = [t[f".{name}.weight"] for name in ("a1", "a2", "b1", "b2")]
            load = modules.GLoRAModule.make_module_from_state_dict
            module = load("x", layer, *parts, None, t[".alpha"])
        else:
            type_ = modules.ButterflyOFTModule if "BOFT" in kind else modules.DiagOFTModule
            blocks, rescale = t[".oft_blocks"], t.get(".rescale")
            module = type_.make_module_from_state_dict("x", layer, blocks, rescale, t[".alpha"])
        return module.get_merged_weight(strength)[0]

    @torch.no_grad()
    def merged(kind: str, weight: torch.Tensor, t: Tensors, strength: float) -> torch.Tensor:
        t = {name: value.half().float() for name, value in t.items()}  # as `write_lora` does
        if kind == "replacement":
            return t[".set_weight"]
        if kind in NORMS:
            return weight + strength * next(iter(t.values()))
        if kind.startswith(("(IA)³", "GLoRA", "OFT", "BOFT")):
            return by_module(kind, weight, t, strength)
        change = delta(kind, t).reshape(weight.shape)
        if ".dora_scale" not in t:
            return weight + strength * change
        of_outputs = t[".dora_scale"].shape[0] == len(weight)
        return weight_decompose(weight + change, t[".dora_scale"], strength, of_outputs)

    return merged


def stored(
    folder: Path, shape: tuple[int, ...], seed: int = 5
) -> tuple[StoredTensor, torch.Tensor]:
    """A weight in a file, and its values in float32."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5
    file = write_lora(folder / "weight.safetensors", {"layer": {".weight": value}})
    tensor = read_weights(file).tensors["layer.weight"]
    assert isinstance(tensor, StoredTensor)
    return tensor, value.half().float()


def change(folder: Path, tensors: Tensors, strength: float = 1.0) -> LoraChange:
    (adapter,) = read_lora(write_lora(folder / "lora.safetensors", {"layer": tensors})).adapters
    return LoraChange(adapter, strength)


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_a_kind_is_merged_as_by_its_trainer(
    oracle: Oracle, tmp_path: Path, kind: str, layer: str, strength: float
) -> None:
    shape = SHAPES[layer]
    base, weight = stored(tmp_path, shape)
    tensors = tensors_of(kind, shape)
    one = change(tmp_path, tensors, strength)
    require_fit(one.adapter, shape)
    found = MergedTensor(base, (one,), shape).read(np.float16)
    wanted = oracle(kind, weight, tensors, strength).numpy().astype(np.float16)
    assert half_steps(found, wanted) <= 1
    assert half_steps(found, weight.numpy().astype(np.float16)) > 100
