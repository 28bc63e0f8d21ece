"""Whole runs: right artifacts agree with the reference, mistakes are found where they are made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.recipe.sections import CompressionGate
from tests.support.checkpoints import edit_checkpoint, write_component
from tests.support.packages import edit_manifest, edit_weights, json_of
from verify.judge.checks import Results
from verify.judge.gates import recipe_gates
from verify.judge.policy import load_policy
from verify.judge.rules import Rules
from verify.levels.generation import check_generation, check_sanity
from verify.question import COMPARED, Evidence, Question
from verify.reference.recording import Recording
from verify.reports import report
from verify.reports.images import image_paths
from verify.run import verify
from verify.runtime.runtimes import TorchRuntime
from verify.sampling.sampling import Trace

pytestmark = pytest.mark.usefixtures("one_thread")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pictured(base: Checkpoint, base_artifact: Path, traces: tuple[Trace, ...]) -> Results:
    """The runs of `base_artifact`."""
    return verify(
        base_artifact,
        Evidence(base, traces=traces),
        Question(runtime="torch", levels=("generation", "sanity")),
    )


def places(results: Results) -> set[tuple[str, str, str]]:
    """The failed checks."""
    return {(c.level, c.component, c.output or c.case) for c in results.failures}


def test_a_good_artifact_makes_the_references_pictures(pictured: Results) -> None:
    cases = {c.case for c in pictured.checks}
    assert cases == {"euler_a text-to-image 1", "euler_a image-to-image 1"}
    for made in pictured.generations:
        assert made.latents.cosine > 0.999
        assert made.similarity.psnr_db > 35
        assert made.similarity.ssim is not None
        assert made.similarity.ssim > 0.99
        assert all(step.noise_pred.snr_db > 45 for step in made.trajectory)
    text, image = pictured.generations
    assert len(text.trajectory) == 5
    assert len(image.trajectory) == 3  # strength 0.6
    assert not np.array_equal(text.reference, image.reference)


def test_the_report_names_pictures_that_are_there(pictured: Results) -> None:
    document = json_of(pictured)
    files = report.pictures(pictured)
    assert set(image_paths(document)) == set(files)
    assert all(data.startswith(b"\x89PNG") for data in files.values())
    made = document["generations"][1]
    assert made["kind"] == "image-to-image"
    assert made["images"]["start"] in files
    assert len(made["trajectory"]) == 3
    check = next(c for c in document["checks"] if c["output"] == "image")
    assert {"snr_db", "psnr_db", "ssim"} <= check["metrics"].keys()
    assert "psnr_db >= 28" in check["gate"]
    for text in (report.markdown(pictured), report.junit(pictured)):
        assert "PSNR" in text
        assert "peak 1.0" in text


def flip_projection(weights: Weights) -> None:
    weights["text_projection.weight"] = weights["text_projection.weight"].roll(1, 0)


def ignore_time_ids(weights: Weights) -> None:
    name = "add_embedding.linear_1.weight"
    weights[name] = torch.cat([weights[name][:, :32], 0 * weights[name][:, 32:]], dim=1)


def another_layers_tensor(weights: Weights) -> None:
    name = "{}.resnets.1.conv1.weight"
    weights[name.format("mid_block")] = weights["mid_block.resnets.0.conv1.weight"].clone()


def not_a_number(weights: Weights) -> None:
    weights["conv_out.bias"][1] = float("nan")


def black(weights: Weights) -> None:
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"].fill_(-1)


def half_as_bright(weights: Weights) -> None:
    for name in ("weight", "bias"):
        weights[f"decoder.conv_out.{name}"] *= 0.5


MUTATIONS: dict[str, tuple[str, Callable[[Weights], None], set[tuple[str, str, str]]]] = {
    "text encoder 2's pooled output wrong": (
        "text_encoder_2",
        flip_projection,
        {("conversion", "text_encoder_2", "pooled_outputs")},
    ),
    "time_ids ignored": ("unet", ignore_time_ids, {("conversion", "unet", "noise_pred")}),
    "a tensor from another layer": (
        "unet",
        another_layers_tensor,
        {("conversion", "unet", "noise_pred")},
    ),
    "VAE scale wrong": (
        "vae_decoder",
        half_as_bright,
        {("conversion", "vae_decoder", "image"), ("generation", "pipeline", "image")},
    ),
    "black image": (
        "vae_decoder",
        black,
        {
            ("conversion", "vae_decoder", "image"),
            ("generation", "pipeline", "image"),
            ("sanity", "pipeline", "image"),
        },
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught_by_the_right_level(
    mutation: str,
    base: Checkpoint,
    artifact: Path,
    recording: Recording,
    traces: tuple[Trace, ...],
    tmp_path: Path,
) -> None:
    component, change, expected = MUTATIONS[mutation]
    part = "vae" if component.startswith("vae") else component
    wrong = edit_checkpoint(base, tmp_path, part, change)
    package = artifact / f"{COMPONENTS[component].file}.mlpackage"
    shutil.rmtree(package)
    write_component(package, wrong, component, attention="split_einsum")
    found = places(
        verify(
            package,
            Evidence(base, recording=recording),
            Question(runtime="torch", levels=COMPARED),
        )
    )
    if levels := {level for level, *_ in expected} - {"conversion"}:
        found |= places(
            verify(
                artifact,
                Evidence(base, traces=traces[:1]),
                Question(runtime="torch", levels=levels),
            )
        )
    assert found == expected


def test_not_a_number_in_one_weight_is_caught(
    artifact: Path, base: Checkpoint, traces: tuple[Trace, ...], recording: Recording
) -> None:
    package = artifact / "Unet.mlpackage"
    edit_weights(package, lambda data: data[128:130].view(np.float16).fill(np.nan))
    question = Question(runtime="torch", levels=("structure", "conversion"), components=["unet"])
    results = verify(artifact, Evidence(base, recording=recording), question)
    found = places(results)
    levels = ("generation", "sanity")
    results = verify(
        artifact, Evidence(base, traces=traces[:1]), Question(runtime="torch", levels=levels)
    )
    assert {
        ("structure", "unet", "weights"),
        ("conversion", "unet", "noise_pred"),
        ("generation", "pipeline", "latents"),
        ("generation", "pipeline", "image"),
        ("sanity", "pipeline", "image"),
    } <= found | places(results)
    sane = next(c for c in results.failures if c.level == "sanity")
    assert "not finite" in sane.message
    assert json_of(results)["generations"][0]["psnr_db"] is None


class Swapped(TorchRuntime):
    """A runtime that gives the UNet's halves in the wrong order."""

    def load(self, package: Path) -> Any:
        model = super().load(package)
        if package.stem != "Unet":
            return model
        return lambda inputs: {name: value[::-1].copy() for name, value in model(inputs).items()}


def test_swapped_halves_are_caught(
    base_artifact: Path, base: Checkpoint, traces: tuple[Trace, ...], recording: Recording
) -> None:
    results = verify(
        base_artifact / "Unet.mlpackage",
        Evidence(base, recording=recording),
        Question(runtime=Swapped(), levels=["conversion"]),
    )
    assert {c.case.split()[-1] for c in results.failures} == {"cond", "uncond"}
    results = verify(
        base_artifact,
        Evidence(base, traces=traces[:1]),
        Question(runtime=Swapped(), levels=["generation"]),
    )
    assert ("generation", "pipeline", "latents") in places(results)
    (made,) = results.generations
    assert made.trajectory[0].noise_pred.snr_db < 35


def test_a_wrong_scaling_factor_in_the_manifest_is_caught(artifact: Path, base: Checkpoint) -> None:
    pipeline = json.loads((artifact / "manifest.json").read_text())["pipeline"]
    pipeline["vae"]["scaling_factor"] = 0.5
    edit_manifest(artifact, pipeline=pipeline)
    results = verify(artifact, base, Question(runtime="torch", levels=["structure"]))
    (failure,) = results.failures
    assert (failure.component, failure.case) == ("artifact", "pipeline")
    assert "vae.scaling_factor is 0.5" in failure.message


def test_a_reference_that_makes_no_picture_proves_nothing(traces: tuple[Trace, ...]) -> None:
    trace = traces[0]
    noise = np.random.default_rng(0).random((96, 64, 3)).astype(np.float32)
    broken = replace(trace, picture=replace(trace.picture, image=noise))
    check = check_sanity(broken, np.random.default_rng(1).random((96, 64, 3)))
    assert check.verdict == "indeterminate"
    assert "reference's own picture tells nothing" in check.message
    assert check_sanity(broken, np.zeros((96, 64, 3))).verdict == "fail"


def test_a_missing_component_is_no_pass(
    artifact: Path, base: Checkpoint, traces: tuple[Trace, ...]
) -> None:
    shutil.rmtree(artifact / "VAEDecoder.mlpackage")
    results = verify(
        artifact, Evidence(base, traces=traces), Question(runtime="torch", levels=["sanity"])
    )
    assert ("sanity", "pipeline", "run") in places(results)


def test_compressed_weights_have_no_universal_gate(pictured: Results) -> None:
    made = pictured.generations[0]
    far = replace(made, latents=replace(made.latents, cosine=0.5))
    policy = load_policy()
    judged = {bits: check_generation(far, Rules(policy, bits))[0] for bits in ("16", "6")}
    assert judged["16"].verdict == "fail"
    assert (judged["6"].verdict, judged["6"].gate) == ("pass", "finite")
    gate = CompressionGate(bits="6", component="pipeline", min_latents_cosine=0.9, min_psnr_db=20)
    latents, image = check_generation(far, Rules(policy, "6", recipe_gates([gate], "6")))
    assert (latents.verdict, latents.gate) == ("fail", "cosine >= 0.9")
    assert (image.verdict, image.gate) == ("pass", "psnr_db >= 20")
