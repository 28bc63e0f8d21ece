"""Palettes per group of output channels: stored, decoded as coremltools does, judged singly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coremltools.optimize.coreml import decompress_weights

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import Result, run
from convert.source.download import Snapshot
from convert.weights.palette import fit_groups
from verify.artifact.inspect import inspect_functions
from verify.artifact.stored import Palettes
from verify.levels.compression import compressed_weights
from verify.mil import Constant, load_program
from verify.question import Question
from verify.run import verify
from verify.runtime.evaluator import Evaluator

# Few tensors of each kind: linear, convolution, linear as convolution, in float16 and float32.
RECIPE = """
name = "toy"
source.path = "toy"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["4"] }
target.deployment = "iOS18"
[compress]
group_size = 32
components = { text_encoder = "3", text_encoder_2 = "16", unet = "16" }
tensors = [
    { name = "mid_block.*", bits = "4" },
    { component = "vae_decoder", name = "decoder.mid_block.resnets.*", bits = "4" },
]
"""


@pytest.fixture(scope="module")
def source(toy: Path) -> Checkpoint:
    return open_checkpoint(toy)


@pytest.fixture(scope="module")
def grouped(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An artifact with a palette for every 32 output channels."""
    plan = make_plan(parse_recipe(RECIPE, where="test"), source)
    out = tmp_path_factory.mktemp("groups") / "out"
    return run(plan, Snapshot(source.path, None, None, ()), out)[0]


def test_values_are_those_of_the_fitted_groups(grouped: Result, source: Checkpoint) -> None:
    found = compressed_weights(load_program(grouped.path / "Unet.mlpackage"), source, "unet")
    tensors = source.component_tensors("unet")
    name = "mid_block.resnets.0.conv1.weight"
    weight = tensors[name].read(np.float16)
    best = fit_groups(weight, 4, 32)
    rows = best.indices.reshape(len(best.lut), -1)
    expected = np.take_along_axis(best.lut, rows.astype(int), axis=1)
    np.testing.assert_array_equal(found[name].value.numpy().reshape(rows.shape), expected)
    assert found[name].palettes == Palettes(4, len(weight) // 32)


@pytest.mark.parametrize("model", ["Unet", "TextEncoder", "VAEDecoder"])
def test_coremltools_decodes_the_same_weights(grouped: Result, model: str) -> None:
    package = grouped.path / f"{model}.mlpackage"
    loaded = ct.models.MLModel(str(package), skip_model_load=True)
    spec = decompress_weights(loaded)._mil_program
    theirs = {op.outputs[0].name: op.outputs[0].val for op in spec.functions["main"].operations}
    program = load_program(package)
    evaluator = Evaluator(program)
    luts = [op for op in program.ops if op.type == "constexpr_lut_to_dense"]
    assert luts
    for op in luts:
        name = op.outputs[0][0]
        np.testing.assert_array_equal(evaluator.constant(name).numpy(), theirs[name])


def test_the_manifest_says_what_was_done(grouped: Result) -> None:
    told = grouped.manifest["compression"]
    assert {c: told[c]["bits"] for c in told} == {
        "text_encoder": "3",
        "text_encoder_2": "16",
        "unet": "16",
        "vae_decoder": "16",
        "vae_encoder": "16",
    }
    assert told["vae_encoder"]["tensors"] == {}
    assert "mid_block.resnets.0.conv1.weight" in told["unet"]["tensors"]["4 in groups of 32"]


def test_the_plan_knows_the_bytes(grouped: Result, source: Checkpoint) -> None:
    plan = make_plan(parse_recipe(RECIPE, where="test"), source)
    mask = 77 * 77 * 2 + 512  # of the text encoders: not the checkpoint's, and not planned
    for component, job in plan.artifacts[0].jobs.items():
        file = grouped.path / grouped.manifest["components"][component]
        size = (file / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        assert size == pytest.approx(plan.weight_bytes[job], rel=0.02, abs=mask), component


def test_inspect_shows_every_weight(grouped: Result) -> None:
    (model,) = inspect_functions(grouped.path / "Unet.mlpackage", by_layer=True)
    layers = {layer.name: layer for layer in model.layers or []}
    layer = layers["mid_block_resnets_0_conv1_weight"]
    groups = layer.shape[0] // 32
    assert (layer.format, layer.palettes, layer.entries) == ("4-bit palettes", groups, 16)
    assert layer.bytes == layer.elements // 2 + groups * 16 * 2
    assert layers["conv_in_bias"].format == "fp16"
    assert layers["conv_in_bias"].bits_per_weight == 16
    # Records and padding are all that the layers do not hold.
    assert sum(layer.bytes for layer in layers.values()) < model.weights.bytes
    shown = replace(model, files={}).to_json()["layers"]
    assert next(x for x in shown if x["name"] == layer.name)["bits_per_weight"] == pytest.approx(
        layer.bits_per_weight, abs=1e-3
    )


def test_the_folder_has_the_structure_that_it_claims(grouped: Result, source: Checkpoint) -> None:
    results = verify(grouped.path, source, Question(levels=("structure",)))
    assert results, [c.message for c in results.failures]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", ["TextEncoder", "VAEDecoder"])
def test_they_are_verified(grouped: Result, source: Checkpoint, model: str) -> None:
    results = verify(grouped.path / f"{model}.mlpackage", source)
    assert results, [c.message for c in results.failures]
    assert any(c.case == "palettes" and c.verdict == "pass" for c in results.checks)


@pytest.mark.usefixtures("one_thread")
def test_a_wrong_entry_is_found_in_its_group(
    grouped: Result, source: Checkpoint, tmp_path: Path
) -> None:
    made = grouped.path / "TextEncoder.mlpackage"
    package = Path(shutil.copytree(made, tmp_path / "TextEncoder.mlpackage"))
    ops = load_program(package).ops
    op = next(op for op in ops if op.outputs[0][0] == "encoder_layers_1_mlp_fc1_weight")
    constant = op.inputs["lut"][0]
    assert isinstance(constant, Constant)
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    start = constant.offset + 64 + 2 * 8 * 2  # the third table of eight float16 entries
    lut = np.frombuffer(bytes(data[start : start + 16]), np.float16).copy()
    lut[3] = lut[6]
    data[start : start + 16] = lut.tobytes()
    file.unlink()
    file.write_bytes(data)
    results = verify(package, source, Question(levels=("compression",)))
    (failure,) = results.failures
    assert failure.case == "palettes"
    assert "encoder.layers.1.mlp.fc1.weight, group 2: squared error" in failure.message
