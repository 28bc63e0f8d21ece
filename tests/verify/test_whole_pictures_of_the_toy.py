"""The toy's pictures from PyTorch and from its artifact, prompt by prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.checkpoint.pipeline import pipeline_config
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.recipe.sections import Verify
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Resolution
from verify.artifact.folder import require_models
from verify.judge.image_metrics import compare_images
from verify.judge.metrics import compare
from verify.levels.generation import Candidate
from verify.levels.sanity import find_flaw
from verify.runtime.runtimes import TorchRuntime
from verify.sampling.pipeline import network
from verify.sampling.sampling import replay, settings_for, trace_all

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow square on a black background",
    "a large green triangle on a white background",
    "a blue star on a yellow background",
    "a small white ring on a red background, at the top",
    "a small cyan ring on a black background",
    "a large purple circle on a green background, on the left",
    "a large white square on a cyan background, at the bottom",
)
RECIPE = """
name = "toy"
source.path = "toy"
matrix = { attention = ["split_einsum"], resolution = ["128x128"] }
"""


@pytest.fixture(scope="module")
def artifact(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))
    out = tmp_path_factory.mktemp("pictures") / "out"
    return run(plan, Snapshot(toy, None, None, ()), out)[0].path


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_karras"])
def test_an_fp16_artifact_makes_the_same_pictures(
    scheduler: str, toy: Path, artifact: Path
) -> None:
    checkpoint = open_checkpoint(toy)
    asked = Verify.model_validate({"prompts": PROMPTS, "steps": 8, "scheduler": scheduler})
    wanted = settings_for(asked, ("text-to-image", "image-to-image"))
    config = pipeline_config(checkpoint)
    runtime = TorchRuntime()
    candidate = Candidate(
        {name: network(runtime.load(file)) for name, file in require_models(artifact).items()},
        config,
        {name: artifact for name in config["pad_tokens"]},
    )
    found = {}
    for trace in trace_all(checkpoint, wanted, Resolution(128, 128)):
        picture = replay(candidate.pipeline(trace.settings), trace)
        cosine = compare(trace.picture.latents[-1], picture.latents[-1]).cosine
        psnr = compare_images(trace.picture.image, picture.image).psnr_db
        found[trace.settings.case] = cosine, psnr, find_flaw(picture.image)
    assert len(found) == 2 * len(PROMPTS)
    for case, (cosine, psnr, flaw) in found.items():
        assert cosine >= 0.999, (case, found)
        assert psnr >= 35, (case, found)
        assert flaw is None, (case, found)
