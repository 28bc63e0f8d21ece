"""What apps cannot express of a checkpoint is said by plan, manifest, lint and card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedEmbedding, AppliedLora, AppliedVae
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.notices import Notice, notices
from convert.plan.plan import make_plan
from convert.plan.text import plan_document, plan_table
from convert.recipe.recipe import parse_recipe
from release.card.facts import facts
from release.lint.apps import GUERNIKA
from release.lint.lint import Lint, lint_bundle
from release.lint.tree import FolderTree
from tests.support.checkpoints import EOS, edit_checkpoint, write_json
from tests.support.packages import edit_manifest

RECIPE = parse_recipe(
    'name = "t"\nsource.path = "t"\nmatrix = { resolution = ["64x96"] }\n', where="test"
)


@pytest.fixture
def copy(base: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.path, tmp_path / "ck"))


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / name
        write_json(file, {**json.loads(file.read_text("utf-8")), **values})

    return edit


def scheduler(**values: Any) -> Callable[[Path], None]:
    return edited("scheduler/scheduler_config.json", **values)


def without_scaling_factor(folder: Path) -> None:
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["scaling_factor"]
    write_json(file, config)


def test_what_is_put_in_and_changes_nothing_is_said(base: Checkpoint) -> None:
    te, both = {"text_encoder": 2}, {"unet": 1, "text_encoder": 2}
    given = replace(
        base,
        loras=(
            AppliedLora("loras/te.safetensors", 1.0, 1.0, {"LoRA": te}),
            AppliedLora("loras/off.safetensors", 0.0, 0.5, {"LoRA": {"unet": 1}}),
            AppliedLora("loras/on.safetensors", 0.0, 0.5, {"LoRA": both}),
        ),
        embeddings=(AppliedEmbedding(("e",), "e", ("zqx",), ("text_encoder",)),),
        other_vae=AppliedVae("other.vae", ("v",), "", {}, is_sdxl="its config.json"),
    )

    def said(*components: str) -> list[str]:
        return [str(n) for n in notices(given, components) if n.topic in TOPICS]

    off = "note: the LoRA off.safetensors has the strength 0: it changes nothing"
    nothing = "nothing of what is converted has it"
    assert said("unet") == [
        f"note: the VAE other.vae takes the place of the checkpoint's own: {nothing}",
        f"note: the LoRA te.safetensors changes text_encoder alone: {nothing}",
        off,
        f"note: the embedding e is of text_encoder alone: {nothing}",
    ]
    assert said("text_encoder", "text_encoder_2", "unet", "vae_decoder")[1:] == [off]


TOPICS = ("other vae", "loras", "embeddings")
SAID: list[tuple[Callable[[Path], None], str, str]] = [
    (edited("vae/config.json", scaling_factor=0.5), "latents", "note: .* 0.5: folded into VAEDec"),
    (edited("vae/config.json", shift_factor=0.1), "latents", "shift_factor 0.1.* ignore the shift"),
    (without_scaling_factor, "latents", r"0.18215 \(0.18215 is diffusers' default"),
    (edited("vae/config.json", latents_mean=[1, 2, 3, 4]), "latents", "`latents_mean` stands al"),
    (scheduler(prediction_type="v_prediction"), "prediction", "`v_prediction`.*nothing but noise"),
    (scheduler(_class_name="EDMDPMSolverMultistepScheduler"), "prediction", "EDM"),
    (scheduler(_class_name="FlowMatchEulerDiscreteScheduler"), "prediction", "straight paths"),
    (scheduler(rescale_betas_zero_snr=True), "schedule", "`rescale_betas_zero_snr`"),
    (scheduler(beta_schedule="linear", beta_end=0.02), "schedule", "`beta_schedule` linear, `beta"),
    (scheduler(timestep_spacing="trailing"), "schedule", "trailing"),
    (edited("tokenizer_2/special_tokens_map.json", pad_token="a"), "padding", "tokenizer_2 fills"),
    (edited("tokenizer/tokenizer_config.json", model_max_length=64), "length", "is 64"),
    (
        edited("text_encoder/config.json", eos_token_id=7),
        "pooling",
        "is 7, its tokenizer ends .*533",
    ),
]


@pytest.mark.parametrize(("change", "topic", "says"), SAID)
def test_what_apps_cannot_express_is_said(
    change: Callable[[Path], None], topic: str, says: str, copy: Path
) -> None:
    change(copy)
    plan = make_plan(RECIPE, open_checkpoint(copy))
    (notice,) = plan.notices
    assert notice.topic == topic
    lines = plan_table(plan).splitlines()
    assert lines[-1] == str(notice)
    assert lines.count(str(notice)) == 1
    assert re.search(says, str(notice)), notice
    assert plan_document(plan)["notices"] == [notice.to_json()]


def test_an_ordinary_checkpoint_has_nothing_to_be_said(base: Checkpoint, toy: Path) -> None:
    for checkpoint in (base, open_checkpoint(toy)):
        assert notices(checkpoint, checkpoint.components) == ()


def test_an_inpainting_unet_is_said_to_fail(shapes: Any) -> None:
    (notice,) = notices(open_checkpoint(shapes["inpainting"]), ["unet"])
    assert "takes 9 channels" in notice.problem


def test_nothing_is_said_of_what_is_not_converted(copy: Path) -> None:
    edited("vae/config.json", scaling_factor=0.5)(copy)
    checkpoint = open_checkpoint(copy)
    assert notices(checkpoint, ["text_encoder", "unet"]) == ()
    assert len(notices(checkpoint, ["vae_encoder"])) == 1


def with_rows(base: Checkpoint, folder: Path, tokens: dict[str, int]) -> Checkpoint:
    """A checkpoint with trained rows in both embeddings, and their tokens."""
    import torch

    def grow(weights: dict[str, torch.Tensor]) -> None:
        key = "embeddings.token_embedding.weight"
        weights[key] = torch.cat([weights[key], weights[key][:2]])

    size = {"vocab_size": EOS + 3}
    first = edit_checkpoint(base, folder, "text_encoder", grow, size)
    both = edit_checkpoint(first, folder / "both", "text_encoder_2", grow, size)
    for name in ("tokenizer", "tokenizer_2") if tokens else ():
        write_json(both.path / name / "added_tokens.json", tokens)
    return open_checkpoint(both.path)


def test_trained_tokens_are_named_as_usable_or_lost(base: Checkpoint, tmp_path: Path) -> None:
    checkpoint = with_rows(base, tmp_path, {"<mine>": EOS + 1, "zx": EOS + 2})
    found = notices(checkpoint, ["text_encoder", "text_encoder_2"])
    tokens = [n for n in found if n.topic == "tokens"]
    assert [(n.severity, n.problem.split("`")[1]) for n in tokens] == [
        ("note", "zx"), ("warning", "<mine>"),
    ]  # fmt: skip
    assert "lost in Apple's Swift package" in tokens[1].effect
    assert [n.topic for n in found if n not in tokens] == ["pooling"] * 2  # `eos_token_id` 2


def test_rows_without_a_token_are_told(base: Checkpoint, tmp_path: Path) -> None:
    checkpoint = with_rows(base, tmp_path, {})
    found = notices(checkpoint, ["text_encoder", "text_encoder_2"])
    assert [n.problem for n in found] == [
        f"{name} has {EOS + 3} embeddings, {tokens} {EOS + 1} tokens"
        for name, tokens in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    ]


def test_apple_s_engine_refuses_a_scale_that_it_cannot_fold(copy: Path) -> None:
    edited("vae/config.json", scaling_factor=0.5)(copy)
    checkpoint = open_checkpoint(copy)
    with pytest.raises(InputError, match=r"scaling_factor 0.5, which Apple's engine"):
        make_plan(RECIPE, checkpoint, components=["vae_encoder"], engine="apple")
    make_plan(RECIPE, checkpoint, components=["text_encoder"], engine="apple")


def test_a_vae_of_other_channels_than_the_unet_is_refused(copy: Path) -> None:
    edited("vae/config.json", latent_channels=16)(copy)
    with pytest.raises(InputError, match="`latent_channels` is 16; the UNet gives latents of 4"):
        make_plan(RECIPE, open_checkpoint(copy))


# ---- afterwards ----


def spoken(result: Lint, rule: str) -> list[tuple[str, str, str]]:
    return [(f.severity, f.file, f.problem) for f in result.findings if f.rule == rule]


def test_lint_and_card_repeat_the_manifests_notices(bundle: Path) -> None:
    lost = Notice("warning", "tokenizer", "tokens", "trained token `<mine>`", "lost in `M`")
    edit_manifest(bundle, notices=[lost.to_json(), {"severity": 3}, "text"])
    result = lint_bundle(FolderTree(bundle))
    assert spoken(result, "checkpoint") == [("warning", "manifest.json", lost.problem)]
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["notices"] = [lost.to_json()]
    archives = [{"archive": "a.zip", "manifest": manifest}] * 2
    lines = facts({"archives": archives}, RECIPE)
    assert lines.count("Trained token `<mine>`: lost in `M`.") == 1
    assert sum("negative prompt" in line for line in lines) == 1


def metadata(bundle: Path, model: str, **values: str) -> None:
    file = bundle / f"{model}.mlmodelc" / "metadata.json"
    found = json.loads(file.read_text())
    found[0]["userDefinedMetadata"].update(values)
    file.write_text(json.dumps(found))


@pytest.mark.parametrize("factor", ["0.5", "0.18215", "a lot"])
def test_lint_tells_a_scale_that_is_not_folded(factor: str, bundle: Path) -> None:
    """Bundles of older versions, or of other converters."""
    metadata(bundle, "VAEDecoder", scaling_factor=factor)
    result = lint_bundle(FolderTree(bundle))
    (told,) = spoken(result, "scaling-factor")
    assert told[:2] == ("error", "VAEDecoder.mlmodelc")
    assert factor in told[2]
    (finding,) = (f for f in result.findings if f.rule == "scaling-factor")
    assert GUERNIKA not in finding.apps


def test_lint_reads_the_scale_of_an_older_manifest(bundle: Path) -> None:
    pipeline = json.loads((bundle / "manifest.json").read_text())["pipeline"]
    pipeline["vae"] = {"scaling_factor": 0.5, "latents_mean": [1.0] * 4}
    edit_manifest(bundle, pipeline=pipeline)
    (told,) = spoken(lint_bundle(FolderTree(bundle)), "scaling-factor")
    assert told[1] == "manifest.json"
    assert "scaling_factor 0.5, latents_mean" in told[2]


def test_lint_tells_of_a_prediction_that_nothing_else_tells(bundle: Path) -> None:
    metadata(bundle, "Unet", prediction_type="v_prediction")
    assert spoken(lint_bundle(FolderTree(bundle)), "checkpoint") == [
        ("warning", "Unet.mlmodelc", "predicts `v_prediction`, not the noise")
    ]


def test_lint_finds_merges_that_are_none(bundle: Path) -> None:
    (bundle / "merges.txt").write_text("#version: 0.2\n")
    assert ("error", "merges.txt", "holds no merges") in spoken(
        lint_bundle(FolderTree(bundle)), "tokenizer"
    )
