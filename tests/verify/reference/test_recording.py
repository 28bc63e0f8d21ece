"""The recorded run and the reference: real inputs, the libraries' own reading of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedVae
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.values import Resolution
from tests.support.checkpoints import edit_checkpoint, make_checkpoint
from verify.judge.metrics import compare
from verify.reference.recording import Recording, record, token_ids
from verify.reference.reference import Reference
from verify.reference.schedule import TIMESTEPS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_recording_is_of_a_real_run(base: Checkpoint) -> None:
    first = record(base, base.components, resolution=Resolution(64, 96))
    again = record(base, base.components, resolution=Resolution(64, 96))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    cases = first.cases["unet"]
    assert [int(case.inputs["timestep"][0]) for case in cases] == list(TIMESTEPS)
    for case in cases:
        assert case.inputs["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 2
        assert {tensor.dtype for tensor in case.inputs.values()} == {torch.float16}
        assert 0.5 < float(case.inputs["sample"].float().std()) < 8
    assert float(first.cases["vae_encoder"][0].inputs["x"].abs().max()) <= 1


def test_a_refiner_is_told_an_aesthetic_score(shapes: Mapping[str, Path]) -> None:
    source = open_checkpoint(shapes["refiner"])
    case = record(source, ["unet"], resolution=Resolution(64, 96)).cases["unet"][0]
    assert case.inputs["time_ids"].tolist() == [[96, 64, 0, 0, 2.5], [96, 64, 0, 0, 6.0]]


def test_token_ids_are_those_of_the_checkpoints_tokenizers(base: Checkpoint) -> None:
    vocabulary = json.loads(base.tokenizers["tokenizer"].vocab)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    for component, pad in (("text_encoder", end), ("text_encoder_2", vocabulary["!"])):
        empty, word, long = token_ids(base, component, ["", "the", "the horse " * 77])
        assert empty.tolist() == [start, end] + [pad] * 75
        assert word.tolist() == [start, vocabulary["the</w>"], end] + [pad] * 74
        assert int(long[-1]) == end
        assert pad == end or pad not in long


@pytest.mark.parametrize("form", [{"variant": "fp16"}, {"max_shard_size": "300KB"}])
def test_the_reference_reads_every_form_of_weight_files(
    form: dict[str, Any], base: Checkpoint, tmp_path: Path
) -> None:
    other = open_checkpoint(make_checkpoint(tmp_path / "base", **form))
    case = record(base, ["unet"], resolution=Resolution(64, 64)).cases["unet"][0]
    with Reference(other, "unet") as unet:
        assert compare(case.outputs["noise_pred"], unet(case.inputs)["noise_pred"]).snr_db > 120


@pytest.mark.parametrize("decoded", [False, True])
def test_a_large_unet_is_computed_in_float32_from_half_the_memory(
    decoded: bool,
    recording: Recording,
    base: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Float32 puts this UNet 122 dB from its float64 outputs, float16 55 dB.

    So two float32 computations of it are 119 dB apart if their sums are taken in unlike orders,
    which a processor's library may do. That both do the same operations, in the same shapes, is
    exact.
    """
    half = open_checkpoint(make_checkpoint(tmp_path / "base", variant="fp16"))
    case, name = recording.cases["unet"][0], "conv_in.weight"
    own = torch.from_numpy(half.component_tensors("unet")[name].read(np.float16))
    weights = {name: own * 1.5} if decoded else None

    def compute(dtype: torch.dtype) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        with Reference(half, "unet", weights=weights) as unet, profile() as seen:
            assert {p.dtype for p in unet._model.parameters()} == {dtype}
            output = unet(case.inputs)["noise_pred"]
        events = [e for e in seen.events() if e.name in PRODUCTS]
        return output, [(e.name, str(e.input_shapes)) for e in events]

    expected, operations = compute(torch.float32)
    assert (compare(case.outputs["noise_pred"], expected).snr_db > 115) != decoded
    monkeypatch.setattr("verify.reference.reference.LARGE", 0)
    found, same_operations = compute(torch.float16)
    assert compare(expected, found).snr_db > 115
    assert len(operations) > 200
    assert same_operations == operations


def profile() -> torch.profiler.profile:
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    )


PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::convolution"}


def test_a_reference_with_a_missing_weight_is_no_reference(
    base: Checkpoint, tmp_path: Path
) -> None:
    broken = edit_checkpoint(base, tmp_path, "unet", lambda weights: weights.pop("conv_in.bias"))
    with pytest.raises(InputError, match=r"conv_in\.bias"):
        Reference(broken, "unet")


def test_what_may_be_at_fault_for_values_that_are_not_finite_is_named(
    base: Checkpoint, tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.layers.0.mlp.fc1.bias"][0] = torch.nan

    spoilt = edit_checkpoint(base, tmp_path, "text_encoder", spoil)
    given = replace(spoilt, other_vae=AppliedVae("other.vae.pt", (), "", {}))
    with pytest.raises(InputError, match="is not finite") as caught:
        record(given, ["text_encoder"], resolution=Resolution(64, 96))
    assert "The checkpoint itself or other.vae.pt is broken" in str(caught.value)
