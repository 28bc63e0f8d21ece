"""Config values of the wrong type: one error that names file and key, on both sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.config_reader import ACTIVATIONS
from convert.checkpoint.pipeline import pipeline_config
from convert.errors import InputError
from convert.networks import layers
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from verify.reference.reference import Reference
from verify.sampling.schedulers import make_scheduler

RECIPE = parse_recipe('name = "t"\n[source]\npath = "t"\n', where="test")

WRONG: list[tuple[str, str, Any, str]] = [
    ("unet", "attention_head_dim", None, "null"),
    ("unet", "attention_head_dim", [2.0, 4.0, 8.0], "2.0"),
    ("unet", "attention_head_dim", "8", '"8"'),
    ("unet", "attention_head_dim", 0, "0"),
    ("unet", "attention_head_dim", True, "true"),
    ("unet", "layers_per_block", "1", '"1"'),
    ("unet", "layers_per_block", None, "null"),
    ("unet", "layers_per_block", 10**9, "1000000000"),
    ("unet", "transformer_layers_per_block", None, "null"),
    ("unet", "transformer_layers_per_block", [1, 2, [2, 10**9]], "1000000000"),
    ("unet", "transformer_layers_per_block", [1, 2, [2]], "[2]"),
    ("unet", "block_out_channels", ["32", "64", "128"], '"32"'),
    ("unet", "block_out_channels", [32.0, 64.0, 128.0], "32.0"),
    ("unet", "block_out_channels", [32] * 1000, "list of 1 to 16"),
    ("unet", "norm_eps", None, "null"),
    ("unet", "norm_eps", "1e-5", '"1e-5"'),
    ("unet", "freq_shift", 10**400, "1000"),
    ("unet", "flip_sin_to_cos", "no", '"no"'),
    ("unet", "conv_in_kernel", 2, "odd"),
    ("unet", "cross_attention_dim", {"a": 1}, '{"a": 1}'),
    ("unet", "time_embedding_dim", "x", '"x"'),
    ("unet", "dropout", "none", '"none"'),
    ("unet", "sample_size", -1, "-1"),
    ("vae", "scaling_factor", "0.13025", '"0.13025"'),
    ("vae", "latent_channels", 4.0, "4.0"),
    ("vae", "use_quant_conv", 1, "1"),
    ("vae", "force_upcast", "yes", '"yes"'),
    ("text_encoder", "num_hidden_layers", 10**9, "1000000000"),
    ("text_encoder", "layer_norm_eps", [], "[]"),
    ("text_encoder", "text_config", {"hidden_size": 32}, "whole CLIP model"),
    ("text_encoder_2", "projection_dim", None, "null"),
    ("text_encoder_2", "hidden_act", 3, "3"),
    ("text_encoder", "hidden_act", "", '""'),
    ("vae", "act_fn", "mish", '"mish"'),
    ("text_encoder_2", "architectures", {"a": 1}, '{"a": 1}'),
]


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "ck"))


def set_value(file: Path, key: str, value: Any) -> None:
    config = json.loads(file.read_text())
    config[key] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "key", "value", "says"), WRONG, ids=[f"{p}-{k}-{s}" for p, k, _, s in WRONG]
)
def test_a_plan_names_the_file_the_key_and_the_value(
    copy: Path, part: str, key: str, value: Any, says: str
) -> None:
    file = copy / part / "config.json"
    set_value(file, key, value)
    with pytest.raises(InputError) as caught:
        make_plan(RECIPE, open_checkpoint(copy))
    assert str(caught.value.where) == str(file)
    assert says in caught.value.problem
    assert key in caught.value.problem or key == "architectures"


def test_the_activations_that_configs_may_name_are_those_that_the_networks_have() -> None:
    assert {*layers.ACTIVATIONS, "quick_gelu"} == set(ACTIVATIONS)


def test_what_is_switched_off_for_every_block_is_switched_off(copy: Path) -> None:
    set_value(copy / "unet/config.json", "only_cross_attention", [False, False, False])
    assert make_plan(RECIPE, open_checkpoint(copy)).jobs
    set_value(copy / "unet/config.json", "only_cross_attention", [False, True, False])
    with pytest.raises(InputError, match="`only_cross_attention` is"):
        make_plan(RECIPE, open_checkpoint(copy))


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("text_encoder", "attention_dropout", "x"),
        ("text_encoder", "id2label", 3),
        ("text_encoder_2", "initializer_range", None),
        ("vae_decoder", "down_block_types", 3),
        ("unet", "only_cross_attention", {"a": "b"}),
    ],
)
def test_what_only_the_libraries_read_is_an_error_that_names_the_file(
    copy: Path, component: str, key: str, value: Any
) -> None:
    part = component.split("_decoder")[0]
    set_value(copy / part / "config.json", key, value)
    with pytest.raises(InputError) as caught:
        Reference(open_checkpoint(copy), component)
    assert str(caught.value.where).startswith(str(copy / part))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", 3),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", 10**9),
        ("beta_start", None),
        ("beta_end", -1.0),
        ("steps_offset", 1.5),
        ("use_karras_sigmas", "false"),
        ("trained_betas", ["0.1"]),
    ],
)
def test_a_schedulers_values_are_checked_before_anything_is_made(
    copy: Path, key: str, value: Any
) -> None:
    file = copy / "scheduler/scheduler_config.json"
    set_value(file, key, value)
    if value is None:  # diffusers has a default of its own
        assert make_plan(RECIPE, open_checkpoint(copy)).jobs
        return
    with pytest.raises(InputError, match=rf"`{key}(\[0\])?` is ") as caught:
        make_plan(RECIPE, open_checkpoint(copy))
    assert str(caught.value.where) == str(file)


@pytest.mark.parametrize("name", ["DiffusionPipeline", "FrozenDict", "NoSuchScheduler", "utils"])
def test_a_scheduler_must_be_one(name: str) -> None:
    with pytest.raises(InputError, match=f"the checkpoint's scheduler, {name}, is not one"):
        make_scheduler(None, {"_class_name": name})


def test_a_value_that_diffusers_trips_over_is_an_error_that_says_so() -> None:
    with pytest.raises(InputError, match="cannot use the checkpoint's scheduler config"):
        make_scheduler("euler", {"beta_schedule": "steep"})
    with pytest.raises(InputError, match="cannot use the checkpoint's scheduler config"):
        make_scheduler("dpmpp_2m", {"solver_order": 2, "timestep_spacing": 5})


def test_the_infinity_that_diffusers_writes_travels_as_text(copy: Path) -> None:
    file = copy / "scheduler/scheduler_config.json"
    config = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": float("-inf")}
    file.write_text(json.dumps(config))  # -Infinity, as in the Hub's own files
    found = pipeline_config(open_checkpoint(copy))["scheduler"]
    assert found["lambda_min_clipped"] == "-inf"
    json.dumps(found, allow_nan=False)
    assert make_scheduler(None, found).config.lambda_min_clipped == float("-inf")
