"""A VAE whose latents are scaled otherwise draws right in apps that know 0.13025 alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.latents import LatentScaling
from convert.checkpoint.pipeline import pipeline_config, user_metadata
from convert.errors import InputError
from convert.values import Resolution
from tests.support.checkpoints import edit_checkpoint, write_component
from verify.mil import load_program
from verify.question import Evidence, Question
from verify.run import verify
from verify.sampling.sampling import Settings, trace_all

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Path("vae/config.json")
SIZE = Resolution(64, 96)

# Of Playground 2.5's config, which has scaling_factor 0.5.
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
SCALINGS: dict[str, dict[str, Any]] = {
    "mean and std": {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
    "factor": {"scaling_factor": 0.3611},
    "shift": {"scaling_factor": 0.3611, "shift_factor": 0.5},
}


def rescaled(base: Checkpoint, folder: Path, scaling: str) -> Checkpoint:
    return edit_checkpoint(base, folder, "vae", config=SCALINGS[scaling])


@torch.inference_mode()
def as_diffusers(path: Path, latents: torch.Tensor, image: torch.Tensor) -> tuple[Any, Any, Any]:
    """What diffusers' pipelines decode of latents; mean and deviation of what they encode."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=torch.float32)
    c = vae.config
    encoded = vae.encode(image).latent_dist
    if c.latents_mean is not None:
        mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (c.latents_mean, c.latents_std))
        z = latents * std / c.scaling_factor + mean
        start, deviation = (encoded.mean - mean) * c.scaling_factor / std, encoded.std / std
    else:
        shift = c.shift_factor or 0
        z = latents / c.scaling_factor + shift
        start, deviation = (encoded.mean - shift) * c.scaling_factor, encoded.std
    return vae.decode(z).sample, start, deviation * c.scaling_factor


@pytest.mark.parametrize("scaling", SCALINGS)
def test_apps_that_scale_by_0_13025_get_what_diffusers_gets(
    scaling: str, base: Checkpoint, tmp_path: Path
) -> None:
    from verify.runtime.runtimes import TorchRuntime

    checkpoint = rescaled(base, tmp_path, scaling)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 12, 8, generator=generator)
    image = torch.rand(1, 3, 96, 64, generator=generator) * 2 - 1
    decoded, mean, deviation = as_diffusers(checkpoint.path, latents, image)
    models = {
        name: TorchRuntime().load(write_component(tmp_path / f"{name}.mlpackage", checkpoint, name))
        for name in ("vae_decoder", "vae_encoder")
    }
    # Float32 on both sides, in another order: a few parts in ten million, a thousand allowed.
    found = models["vae_decoder"]({"z": (latents / 0.13025).numpy()})["image"]
    np.testing.assert_allclose(found, decoded, rtol=0, atol=1e-4)
    encoded = models["vae_encoder"]({"x": image.numpy()})["latent"]
    np.testing.assert_allclose(0.13025 * encoded[:, :4], mean, rtol=0, atol=1e-4)
    log_variance = np.clip(encoded[:, 4:], -30, 20)  # as apps do
    np.testing.assert_allclose(0.13025 * np.exp(log_variance / 2), deviation, rtol=1e-3)


def test_generation_proves_it_and_fails_where_nothing_is_folded(
    base: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    checkpoint = rescaled(base, tmp_path, "mean and std")
    given = {"prompt": "the horse", "negative_prompt": "", "scheduler": "euler_a", "seed": 1}
    settings = [
        Settings(kind="text-to-image", steps=2, guidance=2.0, **given),
        Settings(kind="image-to-image", steps=4, strength=0.5, guidance=2.0, **given),
    ]
    traces = trace_all(checkpoint, settings, SIZE)

    def failures() -> set[tuple[str, str]]:
        found = verify(
            artifact,
            Evidence(checkpoint, traces=traces),
            Question(runtime="torch", levels=["generation"]),
        )
        assert len(found.checks) == 4
        return {(c.case.split()[1], c.output) for c in found.failures}

    unfolded = failures()
    assert {("text-to-image", "image"), ("image-to-image", "latents")} <= unfolded
    for name, file in (("vae_decoder", "VAEDecoder"), ("vae_encoder", "VAEEncoder")):
        shutil.rmtree(artifact / f"{file}.mlpackage")
        write_component(artifact / f"{file}.mlpackage", checkpoint, name)
    assert failures() == set()


def test_half_precision_scales_in_float32(base: Checkpoint, tmp_path: Path) -> None:

    from convert.networks.build import build_network

    checkpoint = rescaled(base, tmp_path, "mean and std")
    network = build_network(
        checkpoint,
        "vae_decoder",
        resolution=Resolution(64, 96),
        attention="original",
        dtype=np.float16,
        deployment="macOS14",
    )
    first = [op for op in network.program.functions["main"].operations if op.op_type != "const"][:4]
    assert [op.op_type for op in first] == ["cast", "mul", "add", "cast"]
    assert str(first[2].outputs[0].dtype.__type_info__()).endswith("fp32")


def test_sdxls_own_scale_changes_no_graph(base: Checkpoint, tmp_path: Path) -> None:
    package = write_component(tmp_path / "VAEDecoder.mlpackage", base, "vae_decoder")
    first = next(op for op in load_program(package).ops if op.type != "const")
    assert first.type == "conv"
    zero = edit_checkpoint(base, tmp_path, "vae", config={"shift_factor": 0, "latents_mean": MEAN})
    again = write_component(tmp_path / "again.mlpackage", zero, "vae_decoder")
    files = [p / "Data/com.apple.CoreML/model.mlmodel" for p in (package, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_travels_with_an_artifact_says_what_its_vae_expects(
    base: Checkpoint, tmp_path: Path
) -> None:
    checkpoint = rescaled(base, tmp_path, "mean and std")
    vae = pipeline_config(checkpoint)["vae"]
    assert (vae["scaling_factor"], vae["latents_mean"], vae["latents_std"]) == (0.13025, None, None)
    assert pipeline_config(checkpoint, folded=False)["vae"]["latents_std"] == STD
    config = json.loads((checkpoint.path / CONFIG).read_text())
    assert user_metadata("vae_decoder", config, {}, {}) == {"scaling_factor": "0.13025"}


def test_the_default_is_that_of_diffusers() -> None:
    from diffusers import AutoencoderKL

    found = LatentScaling.parse({}, CONFIG, 4)
    assert found.scaling_factor == AutoencoderKL().config.scaling_factor
    assert not found.is_standard


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scaling_factor": None}, "`scaling_factor` is null"),
        ({"scaling_factor": 0}, "`scaling_factor` is 0"),
        ({"scaling_factor": True}, "`scaling_factor` is true"),
        ({"scaling_factor": "0.13"}, '`scaling_factor` is "0.13"'),
        ({"scaling_factor": 10**400}, "a finite number"),
        ({"scaling_factor": 1e-44}, "out of float32's range"),
        ({"scaling_factor": 1e300}, "out of float32's range"),
        ({"shift_factor": [1]}, r"`shift_factor` is \[1\]"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "`latents_mean` is .* 4 numbers"),
        ({"latents_mean": MEAN, "latents_std": [1, 0, 1, 1]}, "numbers above 0"),
        ({"latents_mean": 5, "latents_std": STD}, "`latents_mean` is 5"),
        ({"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1}, "beside"),
    ],
)
def test_a_scale_that_no_latents_can_have_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        LatentScaling.parse({"scaling_factor": 0.13025, **values}, CONFIG, 4)
    assert caught.value.where == str(CONFIG)
