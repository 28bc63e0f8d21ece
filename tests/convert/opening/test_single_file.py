"""A single file opens as the folder that it was written from, in every layout that people have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.small_files import library_folder
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.tokenizer.clip import read_tokenizer
from tests.support.checkpoints import SHAPES
from tests.support.single_files import (
    REFINER,
    Weights,
    ldm_weights,
    make_knowable,
    single_file,
    write_file,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_knowable(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture(scope="module")
def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One of the same shapes and other values."""
    return open_checkpoint(make_knowable(tmp_path_factory.mktemp("made") / "other", seed=7))


def require_same(found: Checkpoint, wanted: Checkpoint) -> None:
    """Same tensors of the same values in float16, same settings of every network."""
    assert found.components == wanted.components
    for component in wanted.components:
        assert found.config(component) == wanted.config(component)
        ours, theirs = (c.component_tensors(component) for c in (found, wanted))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].shape == tensor.shape
            np.testing.assert_array_equal(
                ours[name].read(np.float16), tensor.read(np.float16), err_msg=name
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_back_from_ldm_names(
    tmp_path: Path, shapes: Mapping[str, Path], shape: str
) -> None:
    folder = shapes[shape]
    file = single_file(tmp_path / "one.safetensors", folder)
    base = open_checkpoint(folder)
    found = open_checkpoint(file, base=base)
    require_same(found, base)
    assert found.tokenizers == base.tokenizers
    assert found.name == "one"


def test_configs_follow_from_shapes_without_a_base(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    # The embeddings have not CLIP's 49408 rows, so only tokenizers are asked of a base.
    file = single_file(tmp_path / "one.safetensors", folder)
    with pytest.raises(InputError, match="embeddings of 534 tokens, CLIP's vocabulary 49408"):
        open_checkpoint(file)
    other = make_knowable(tmp_path / "other", seed=7, unet={"block_out_channels": (64, 64, 128)})
    require_same(open_checkpoint(file, base=open_checkpoint(other)), opened)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes_hold_the_same_values(
    tmp_path: Path, folder: Path, opened: Checkpoint, dtype: torch.dtype
) -> None:
    def rounded(weights: Weights) -> None:
        for name, value in weights.items():
            weights[name] = value.to(torch.bfloat16).to(dtype)

    file = single_file(tmp_path / "one.safetensors", folder, dtype=torch.float32, change=rounded)
    found = open_checkpoint(file, base=opened)
    name = "mid_block.resnets.0.conv1.weight"
    wanted = torch.from_numpy(opened.parts["unet"].tensors[name].read(np.float32)).bfloat16()
    np.testing.assert_array_equal(
        found.parts["unet"].tensors[name].read(np.float32), wanted.float().numpy()
    )
    assert found.origin is not None
    assert list(found.origin.dtypes["unet"]) == ["F32" if dtype == torch.float32 else "BF16"]


@pytest.mark.parametrize("layout", ["bare", "prefixed", "diffusers"])
def test_a_bare_unet_takes_the_rest_from_its_base(
    tmp_path: Path, folder: Path, opened: Checkpoint, other: Checkpoint, layout: str
) -> None:
    file = single_file(tmp_path / "unet.safetensors", folder, layout)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lacks vae, text_encoder, text_encoder_2") as error:
        open_checkpoint(file)
    assert "--base" in str(error.value.hint)
    found = open_checkpoint(file, base=other)
    for part, wanted in (("unet", opened), ("vae", other), ("text_encoder_2", other)):
        for name, tensor in wanted.parts[part].tensors.items():
            mine = found.parts[part].tensors[name]
            np.testing.assert_array_equal(mine.read(np.float16), tensor.read(np.float16))
    assert found.origin is not None
    assert found.origin.parts["unet"] == "unet.safetensors"
    assert found.origin.parts["vae"] == found.origin.parts["scheduler"] == "base other"
    assert "base/vae/diffusion_pytorch_model.safetensors" in found.files
    assert "base/unet/config.json" not in found.files


def test_the_orientation_of_text_projection_follows_its_spelling(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    key = "conditioner.embedders.1.model.text_projection"

    def comfys(weights: Weights) -> None:
        weights[f"{key}.weight"] = weights.pop(key).T

    ours = single_file(tmp_path / "one.safetensors", folder)
    theirs = single_file(tmp_path / "two.safetensors", folder, change=comfys)
    wanted = opened.parts["text_encoder_2"].tensors["text_projection.weight"].read(np.float16)
    assert wanted.shape[0] != wanted.shape[1]  # or a wrong guess would be silent
    for file in (ours, theirs):
        found = open_checkpoint(file, base=opened).parts["text_encoder_2"].tensors
        np.testing.assert_array_equal(found["text_projection.weight"].read(np.float16), wanted)

    def both(weights: Weights) -> None:
        weights[f"{key}.weight"] = weights[key].T

    with pytest.raises(InputError, match="there twice"):
        open_checkpoint(single_file(tmp_path / "3.safetensors", folder, change=both), base=opened)


@pytest.mark.parametrize("kind", ["base", "refiner", "inpainting"])
def test_the_kind_is_told_by_shapes(tmp_path: Path, shapes: Mapping[str, Path], kind: str) -> None:
    base = open_checkpoint(shapes[kind])
    found = open_checkpoint(single_file(tmp_path / "one.safetensors", shapes[kind]), base=base)
    assert found.origin is not None
    assert found.origin.kind == kind
    assert bool(found.model_index.get("requires_aesthetics_score")) is (kind == "refiner")


@pytest.mark.parametrize(("channels", "kind"), [(8, "edit"), (9, "inpainting"), (5, None)])
def test_the_channels_of_a_unet_say_what_it_is_for(
    tmp_path: Path, folder: Path, opened: Checkpoint, channels: int, kind: str | None
) -> None:
    def widened(weights: Weights) -> None:
        old = weights["input_blocks.0.0.weight"]
        weights["input_blocks.0.0.weight"] = torch.zeros(old.shape[0], channels, 3, 3)

    file = single_file(tmp_path / "one.safetensors", folder, "bare", change=widened)
    if kind is None:
        with pytest.raises(InputError, match="takes 5 channels; SDXL's takes 4, or 9"):
            open_checkpoint(file, base=opened)
        return
    found = open_checkpoint(file, base=opened)
    assert found.origin is not None
    assert found.origin.kind == kind
    assert found.unet.in_channels == channels
    assert found.unet.heads == opened.unet.heads


def test_a_file_with_clips_vocabulary_needs_nothing_else(tmp_path: Path, folder: Path) -> None:
    def whole(weights: Weights) -> None:
        for name, value in weights.items():
            if name.endswith("token_embedding.weight"):
                weights[name] = torch.zeros(49408, value.shape[1], dtype=value.dtype)

    found = open_checkpoint(single_file(tmp_path / "one.safetensors", folder, change=whole))
    assert found.tokenizers["tokenizer"].size == 49408
    assert found.tokenizers["tokenizer_2"].pad_token == "!"
    assert found.scheduler["prediction_type"] == "epsilon"
    bare = single_file(tmp_path / "two" / "one.safetensors", folder, "bare")
    second = open_checkpoint(bare, base=found)
    assert second.tokenizers == found.tokenizers
    assert second.files.keys() == {"one.safetensors", "base/one.safetensors"}
    with library_folder(second, "tokenizer_2") as place:
        assert read_tokenizer(place) == found.tokenizers["tokenizer_2"]
    assert found.documents.keys() >= {
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer_2/vocab.json",
        "model_index.json",
    }


def test_what_shapes_nothing_is_listed_and_ignored(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    encoder = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"

    def merged(weights: Weights) -> None:
        weights[encoder] = torch.arange(77)[None]
        weights["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        weights["denoiser.sigmas"] = torch.zeros(1000)
        for name, value in list(weights.items()):
            if name.startswith("model.diffusion_model."):
                flat = name.removeprefix("model.").replace(".", "")
                weights[f"model_ema.{flat}"] = value * 2

    found = open_checkpoint(
        single_file(tmp_path / "one.safetensors", folder, change=merged), base=opened
    )
    require_same(found, opened)
    assert found.origin is not None
    names = {name for names in found.origin.ignored.values() for name in names}
    assert encoder in names
    assert "denoiser.sigmas" in names
    assert any("EMA" in why for why in found.origin.ignored)
    assert "EMA weights; the plain ones are used" in "\n".join(found.origin.lines())


def test_marks_and_metadata_tell_of_v_prediction(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    def marked(weights: Weights) -> None:
        weights["v_pred"] = torch.zeros(0)
        weights["ztsnr"] = torch.zeros(0)

    file = single_file(tmp_path / "one.safetensors", folder, change=marked)
    found = open_checkpoint(file, base=opened)
    assert found.scheduler["prediction_type"] == "v_prediction"
    assert found.scheduler["rescale_betas_zero_snr"] is True
    assert found.origin is not None
    assert "`v_pred`" in found.origin.prediction[1]
    said = write_file(
        tmp_path / "two.safetensors", ldm_weights(folder), {"modelspec.predict_key": "v"}
    )
    assert open_checkpoint(said, base=opened).scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        (
            "    scaling_config:\n      target: sgm.modules.denoiser_scaling.VScaling\n",
            "v_prediction",
        ),
        ("    parameterization: eps\n    view: VScalings\n", "epsilon"),
    ],
)
def test_settings_beside_the_file_tell_of_v_prediction(
    tmp_path: Path, folder: Path, opened: Checkpoint, text: str, said: str
) -> None:
    file = single_file(tmp_path / "one.v2.safetensors", folder, "bare")
    (tmp_path / "one.v2.yaml").write_text(text)
    found = open_checkpoint(file, base=opened)
    assert found.scheduler["prediction_type"] == said
    assert found.files["one.v2.yaml"] == tmp_path / "one.v2.yaml"  # and so its digest is recorded
    if said != "epsilon" and found.origin is not None:
        assert found.origin.prediction == (said, "one.v2.yaml beside the file")


def test_a_folder_with_one_file_is_that_file(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    single_file(tmp_path / "models" / "one.safetensors", folder)
    (tmp_path / "models" / "README.md").write_text("a card")
    assert open_checkpoint(tmp_path / "models", base=opened).name == "one"
    single_file(tmp_path / "models" / "two.safetensors", folder)
    with pytest.raises(InputError, match=r"2 single files .*: one.safetensors, two.safetensors"):
        open_checkpoint(tmp_path / "models", base=opened)


def test_a_base_that_lacks_it_too_or_does_not_fit_is_refused(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    refiner = open_checkpoint(make_knowable(tmp_path / "refiner", **REFINER))
    file = single_file(tmp_path / "one.safetensors", folder, "bare")
    with pytest.raises(InputError, match="is told 80 values beside the prompt"):
        open_checkpoint(file, base=refiner)
    wide = make_knowable(tmp_path / "wide", text={"hidden_size": 128, "num_attention_heads": 2})
    with pytest.raises(InputError, match="the text encoders give 128 and 128"):
        open_checkpoint(file, base=open_checkpoint(wide))
    with pytest.raises(InputError, match="lacks nothing that a base could supply"):
        open_checkpoint(folder, base=opened)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.update({"extra.weight": torch.ones(1)}), "`extra.weight` belongs to no part"),
        (
            lambda w: w.pop("model.diffusion_model.out.2.weight"),
            "lacks tensor `conv_out.weight`",
        ),
        (lambda w: w.clear(), "holds no tensors"),
        *(
            (
                lambda w, half=half: [w.pop(k) for k in list(w) if f"stage_model.{half}" in k],
                f"and lacks its {half}",
            )
            for half in ("encoder", "decoder")
        ),
        (
            lambda w: w.update({"model.diffusion_model.middle_block.7.weight": torch.ones(1)}),
            "`model.diffusion_model.middle_block.7.weight` has no place",
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if ".output_blocks.8." in k],
            "no structure of SDXL's",
        ),
        (
            lambda w: w.update(
                {k.replace("first_stage_model", "vae"): v for k, v in w.items() if "stage" in k}
            ),
            "holds two of vae",
        ),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, folder: Path, opened: Checkpoint, change: object, problem: str
) -> None:
    file = single_file(tmp_path / "one.safetensors", folder, change=change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=problem):
        open_checkpoint(file, base=opened)


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        ("vae", "first_stage_model."),
        ("text_encoder", "conditioner.embedders.0.transformer."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ],
)
@pytest.mark.parametrize("spelling", ["as it is", "diffusers"])
def test_a_bare_part_replaces_the_bases(
    tmp_path: Path,
    folder: Path,
    opened: Checkpoint,
    other: Checkpoint,
    part: str,
    prefix: str,
    spelling: str,
) -> None:
    if spelling == "diffusers":
        tensors = opened.parts[part].tensors
        weights = {n: torch.from_numpy(t.read(np.float16)) for n, t in tensors.items()}
    else:
        held = {k: v for k, v in ldm_weights(folder).items() if k.startswith(prefix)}
        weights = {name.removeprefix(prefix): value for name, value in held.items()}
    file = write_file(tmp_path / "part.safetensors", weights)
    found = open_checkpoint(file, base=other)
    assert found.origin is not None
    mine = [name for name, place in found.origin.parts.items() if place == file.name]
    assert mine == [part]
    for name, tensor in opened.parts[part].tensors.items():
        values = found.parts[part].tensors[name].read(np.float16)
        np.testing.assert_array_equal(values, tensor.read(np.float16))


def test_ema_weights_are_taken_where_they_are_asked_for(
    tmp_path: Path, folder: Path, opened: Checkpoint
) -> None:
    weights = ldm_weights(folder)
    unet = [name for name in weights if name.startswith("model.diffusion_model.")]
    averaged = {name: weights[name] * 0.5 for name in unet}
    flat = {
        "model_ema." + n.removeprefix("model.").replace(".", ""): v for n, v in averaged.items()
    }
    path = write_file(
        tmp_path / "m.safetensors", {**weights, **flat, "model_ema.decay": weights[unet[0]]}
    )
    wanted = open_checkpoint(
        write_file(tmp_path / "a.safetensors", {**weights, **averaged}), base=opened
    )
    found = open_checkpoint(path, base=opened, ema=True)
    require_same(found, wanted)
    assert found.origin is not None
    assert "plain weights; the EMA ones are used" in "\n".join(found.origin.lines())
    part = found.part("unet")
    assert part.single is not None
    names = {part.single.full_name(name) for name in part.single.tensors}
    assert names == flat.keys()  # what the libraries will read, too

    alone = {name: value for name, value in weights.items() if name not in unet}
    path = write_file(tmp_path / "alone.safetensors", {**alone, **flat})
    for ema in (True, False):  # else the base's UNet would be converted
        with pytest.raises(InputError, match="the UNet's EMA weights alone"):
            open_checkpoint(path, base=opened, ema=ema)

    del flat[next(iter(flat))]
    for spoilt, problem in (
        ({**weights, **flat}, "no EMA weights of `model"),
        (weights, "no EMA weights\n"),
    ):
        path = write_file(tmp_path / "spoilt.safetensors", spoilt)
        with pytest.raises(InputError, match=problem):
            open_checkpoint(path, base=opened, ema=True)
    with pytest.raises(InputError, match="one set of weights"):
        open_checkpoint(folder, ema=True)
