"""Verification as a whole: what is right passes, and wrong usage is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError
from convert.opening.door import open_checkpoint
from convert.values import Resolution
from tests.support.checkpoints import write_component
from verify.judge.checks import Results
from verify.question import Evidence, Question
from verify.reference.recording import Recording, record
from verify.reference.schedule import TIMESTEPS
from verify.run import verify
from verify.runtime.runtimes import TorchRuntime, can_predict, choose

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_good_artifact_passes(good: Results, base: Checkpoint) -> None:
    assert good, [(c.component, c.case, c.message) for c in good.failures]
    assert good.exit_code() == 0
    assert {c.component for c in good.checks} == {*base.components, "artifact"}
    cases = {c.case for c in good.checks if c.component == "unet" and c.level == "conversion"}
    assert cases == {f"t={t} {half}" for t in TIMESTEPS for half in ("cond", "uncond")}
    outputs = {c.output for c in good.checks if c.component == "text_encoder_2" and c.output}
    assert outputs == {"hidden_embeds", "pooled_outputs"}


def test_the_noise_floor_is_kept_beside_the_metrics(good: Results) -> None:
    for check in good.checks:
        if check.level == "conversion":
            assert (check.fp16 is None) == check.component.startswith("vae")
            assert ("fp16_error_ratio" in check.gate) == (check.fp16 is not None)


@pytest.mark.parametrize("shape", ["refiner", "inpainting"])
def test_other_kinds_of_checkpoint_are_verified_alike(
    shape: str, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    source = open_checkpoint(shapes[shape])
    path = write_component(tmp_path / "a.mlpackage", source, "unet")
    assert verify(path, source, Question(runtime="torch"))


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "vae_decoder"])
def test_a_package_alone_is_recognised_by_its_interface(
    component: str, base_artifact: Path, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    write_component(tmp_path / "any.mlpackage", base, component)
    results = verify(
        tmp_path / "any.mlpackage", Evidence(base, recording=recording), Question(runtime="torch")
    )
    assert results
    assert {check.component for check in results.checks} == {component}


def test_a_text_encoder_does_not_cost_a_denoising_run(base: Checkpoint) -> None:
    told: list[str] = []
    recording = record(base, ["text_encoder"], resolution=Resolution(64, 64), say=told.append)
    assert recording.cases.keys() == {"text_encoder"}
    assert len(told) == 4
    assert not any("unet" in line for line in told)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"levels": ["structur"]}, "unknown level `structur`"),
        ({"runtime": "torhc"}, "unknown runtime `torhc`"),
        ({"components": ["vae"]}, "no component `vae`"),
        ({"device": "tpu"}, "no device `tpu`"),
    ],
)
def test_unknown_options_are_refused(
    options: dict[str, Any], problem: str, base_artifact: Path, base: Checkpoint
) -> None:
    with pytest.raises(InputError, match=problem):
        verify(base_artifact, base, Question(**{"runtime": "torch", **options}))


def test_what_is_no_artifact_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(InputError, match="neither an"):
        verify(tmp_path, base)
    with pytest.raises(InputError, match="no such"):
        verify(tmp_path / "absent", base)


def test_no_levels_at_all_is_not_a_pass(base_artifact: Path, base: Checkpoint) -> None:
    with pytest.raises(CannotExecute, match="nothing was checked"):
        verify(base_artifact, base, Question(levels=[]))


@pytest.mark.skipif(can_predict(), reason="Core ML is there on macOS")
def test_core_ml_is_asked_for_only_on_a_mac() -> None:
    assert isinstance(choose("auto"), TorchRuntime)
    with pytest.raises(InputError, match="only on macOS"):
        choose("coreml")
