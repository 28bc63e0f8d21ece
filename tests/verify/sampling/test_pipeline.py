"""diffusers' pipelines around our models: what they pass arrives, what they get is theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import pipeline_config
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.recipe.schedulers import SCHEDULERS
from convert.values import Resolution
from verify.reference.recording import token_ids
from verify.reference.reference import quiet
from verify.sampling.noise import Noise
from verify.sampling.pipeline import UNet, artifact_config, build_pipeline, load_pipeline
from verify.sampling.sampling import References, Settings, sample, start_image
from verify.sampling.schedulers import make_scheduler
from verify.sampling.tokenizers import tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = Resolution(64, 96)


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "kind": "text-to-image",
        "prompt": "the horse",
        "negative_prompt": "a beach",
        "scheduler": "euler_a",
        "steps": 3,
        "guidance": 5.0,
        "seed": 3,
    }
    return Settings(**given | changes)


@pytest.mark.parametrize("kind", ["text-to-image", "image-to-image"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_adapters_change_nothing(kind: Any, guidance: float, base: Checkpoint) -> None:
    import diffusers

    start = start_image(SIZE) if kind == "image-to-image" else None
    strength = None if start is None else 0.7
    asked = settings(kind=kind, guidance=guidance, strength=strength)
    config = pipeline_config(base)
    folders = {name: base.path / name for name in ("tokenizer", "tokenizer_2")}
    with References(base) as references:
        networks = {name: references.network(name) for name in base.components}
        ours = build_pipeline(
            networks, config, folders, scheduler="euler_a", image_to_image=start is not None
        )
        found = sample(ours, asked, SIZE, Noise(3), start)
    classes = {
        "text-to-image": diffusers.StableDiffusionXLPipeline,
        "image-to-image": diffusers.StableDiffusionXLImg2ImgPipeline,
    }
    with quiet():
        theirs = (
            classes[kind]
            .from_pretrained(
                base.path,
                tokenizer=CLIPTokenizer.from_pretrained(base.path / "tokenizer"),
                tokenizer_2=CLIPTokenizer.from_pretrained(base.path / "tokenizer_2"),
                scheduler=make_scheduler("euler_a", base.scheduler),
                add_watermarker=False,
            )
            .to(dtype=torch.float32)
        )
        theirs.set_progress_bar_config(disable=True)
    expected = sample(theirs, asked, SIZE, Noise(3), start)
    assert found.timesteps == expected.timesteps
    for ours_latents, their_latents in zip(found.latents, expected.latents, strict=True):
        assert torch.allclose(ours_latents, their_latents, atol=1e-4, rtol=1e-4)
    assert np.abs(found.image - expected.image).max() < 1e-4


def test_an_artifact_makes_pictures_without_its_checkpoint(base_artifact: Path) -> None:
    pipeline = load_pipeline(base_artifact, runtime="torch", scheduler="dpmpp_2m_karras")
    found = sample(pipeline, settings(scheduler="dpmpp_2m_karras"), SIZE, Noise(0))
    assert found.image.shape == (96, 64, 3)
    again = sample(pipeline, settings(scheduler="dpmpp_2m_karras"), SIZE, Noise(0))
    assert np.array_equal(found.image, again.image)


@pytest.mark.parametrize("kind", ["text-to-image", "image-to-image"])
def test_a_released_bundle_makes_the_artifacts_pictures(
    kind: Any, base_artifact: Path, base_bundle: Path
) -> None:
    """Compiled, under the names and with the second inputs that apps ask for.

    To the bit: the same operations, in the same shapes, on weights at the same offsets.
    """
    assert not list(base_bundle.rglob("*.mlpackage"))
    start = start_image(SIZE) if kind == "image-to-image" else None
    asked = settings(kind=kind, strength=None if start is None else 0.7)
    config = artifact_config(base_artifact)
    found = [
        sample(
            load_pipeline(
                folder,
                runtime="torch",
                image_to_image=start is not None,
                scheduler="euler_a",
                config=config,
            ),
            asked, SIZE, Noise(3), start,
        )
        for folder in (base_artifact, base_bundle)
    ]  # fmt: skip
    assert np.array_equal(found[0].image, found[1].image)


def test_tokens_are_those_of_the_checkpoint(base: Checkpoint, base_artifact: Path) -> None:
    texts = ["", "the horse", "a horse " * 60]
    pads = json.loads((base_artifact / "manifest.json").read_text())["pipeline"]["pad_tokens"]
    for name, pad in pads.items():
        component = name.replace("tokenizer", "text_encoder")
        ids = tokenizer(base_artifact, pad)(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )["input_ids"]
        assert torch.equal(ids, token_ids(base, component, texts)), name


def test_another_size_is_refused_with_the_right_one(base_artifact: Path) -> None:
    pipeline = load_pipeline(base_artifact, runtime="torch")
    with pytest.raises(InputError, match=r"64x64 is asked for; the models are made for 64x96"):
        pipeline("the horse", width=64, height=64, num_inference_steps=1)
    with pytest.raises(InputError, match="hidden state -3"):
        pipeline("the horse", width=64, height=96, num_inference_steps=1, clip_skip=1)


def test_what_is_missing_is_named(artifact: Path) -> None:
    shutil.rmtree(artifact / "VAEEncoder.mlpackage")
    load_pipeline(artifact, runtime="torch")
    with pytest.raises(InputError, match="no VAEEncoder, which image-to-image begins with"):
        load_pipeline(artifact, runtime="torch", image_to_image=True)
    file = artifact / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["pipeline"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Convert again"):
        load_pipeline(artifact, runtime="torch")
    with pytest.raises(InputError, match="not an artifact folder"):
        load_pipeline(artifact / "VAEDecoder.mlpackage" / "Data", runtime="torch")


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_any_batch_goes_through_in_twos(batch: int) -> None:
    seen = []

    def network(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert {len(value) for value in inputs.values()} == {2}
        seen.append(inputs["sample"][:, 0, 0, 0].tolist())
        scale = inputs["text_embeds"][:, :1, None, None] + inputs["timestep"][:, None, None, None]
        return {"noise_pred": inputs["sample"] * scale}

    config = {"projection_class_embeddings_input_dim": 1, "sample_size": None}
    unet = UNet(network, config, None, 8)
    rows = torch.arange(1.0, batch + 1)
    (found,) = unet(
        rows[:, None, None, None].expand(-1, 4, 8, 8),
        torch.tensor(10),
        encoder_hidden_states=torch.zeros(batch, 77, 5),
        added_cond_kwargs={"time_ids": torch.zeros(batch, 6), "text_embeds": rows[:, None]},
    )
    assert torch.equal(found[:, 0, 0, 0], rows * (rows + 10))
    if batch == 6:
        assert seen == [[1, 4], [2, 5], [3, 6]]  # [unconditional, conditional] of each picture


def test_checkpoints_that_pipelines_cannot_run_are_refused(shapes: Mapping[str, Path]) -> None:
    for shape, problem in (("inpainting", "9 input channels"), ("refiner", "only refines images")):
        checkpoint = open_checkpoint(shapes[shape])
        networks = dict.fromkeys(checkpoint.components, lambda inputs: inputs)
        folders = {name: checkpoint.path / name for name in checkpoint.tokenizers}
        with pytest.raises(InputError, match=problem):
            build_pipeline(networks, pipeline_config(checkpoint), folders)


@pytest.mark.parametrize("name", [None, *SCHEDULERS])
def test_every_scheduler_is_made_from_the_checkpoints_config(
    name: str | None, base: Checkpoint
) -> None:
    config = {**base.scheduler, "prediction_type": "v_prediction"}
    scheduler = make_scheduler(name, config)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(4)
    assert 4 <= len(scheduler.timesteps) <= 8
    if name and name.endswith("karras"):
        assert scheduler.config.use_karras_sigmas


def test_an_unknown_scheduler_is_refused_with_a_hint(base: Checkpoint) -> None:
    with pytest.raises(InputError, match="Did you mean `euler_a`"):
        make_scheduler("eular_a", base.scheduler)
