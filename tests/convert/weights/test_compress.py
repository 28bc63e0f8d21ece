"""Palettized packages: the right tensors, as coremltools reads them, shared and repeatable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.optimize.coreml import decompress_weights

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import Result, run
from convert.source.download import Snapshot
from convert.weights.palette import Histogram, fit
from verify.judge.checks import Results
from verify.levels.compression import compressed_weights
from verify.mil import load_program
from verify.question import Question
from verify.run import verify
from verify.runtime.evaluator import Evaluator

BITS = ("8", "6", "4", "2", "1")
RECIPE = """
name = "toy"
[source]
path = "toy"
[matrix]
attention = ["original", "split_einsum"]
resolution = ["64x64"]
bits = ["16", "8", "6", "4", "2", "1", "int8"]
"""


def convert(toy: Path, out: Path, recipe: str = RECIPE) -> dict[tuple[str, str], Result]:
    plan = make_plan(parse_recipe(recipe, where="test"), open_checkpoint(toy))
    made = run(plan, Snapshot(toy, None, None, ()), out)
    return {(r.manifest["attention"], r.manifest["bits"]): r for r in made}


@pytest.fixture(scope="module")
def made(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    return convert(toy, tmp_path_factory.mktemp("compress") / "out")


@pytest.fixture(scope="module")
def modern(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    """The same for macOS 15, whose opset has decoders of its own."""
    recipe = RECIPE.replace('["original", "split_einsum"]', '["original"]')
    recipe = recipe.replace('"int8"]', '"int8", "3", "int4"]')
    recipe += '[target]\ndeployment = "macOS15"\n'
    return convert(toy, tmp_path_factory.mktemp("modern") / "out", recipe)


def with_bits(bits: str) -> str:
    return RECIPE.replace('["16", "8", "6", "4", "2", "1", "int8"]', f'["{bits}"]')


def weight_file(result: Result, model: str) -> Path:
    return result.path / f"{model}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def same_as_coremltools(package: Path) -> None:
    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = decompress_weights(model)._mil_program
    theirs = {op.outputs[0].name: op.outputs[0].val for op in spec.functions["main"].operations}
    program = load_program(package)
    evaluator = Evaluator(program)
    decoded = [op.outputs[0][0] for op in program.ops if op.type.startswith("constexpr")]
    assert len(decoded) >= 16
    for name in decoded:
        np.testing.assert_array_equal(evaluator.constant(name).numpy(), theirs[name])


@pytest.mark.parametrize("bits", [*BITS, "int8"])
def test_coremltools_decodes_the_same_weights(
    made: dict[tuple[str, str], Result], bits: str
) -> None:
    same_as_coremltools(made["original", bits].path / "TextEncoder2.mlpackage")


@pytest.mark.parametrize("bits", [*BITS, "int8", "3", "int4"])
def test_coremltools_decodes_the_same_weights_for_macos15(
    modern: dict[tuple[str, str], Result], bits: str
) -> None:
    same_as_coremltools(modern["original", bits].path / "TextEncoder2.mlpackage")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bits", ["6", "3", "int8", "int4"])
def test_models_for_macos15_are_verified(
    modern: dict[tuple[str, str], Result], toy: Path, bits: str
) -> None:
    folder = modern["original", bits].path
    structure = check(folder, toy, levels=("structure",), components=["unet", "vae_decoder"])
    assert structure, [c.message for c in structure.failures]
    results = check(folder / "TextEncoder2.mlpackage", toy)
    assert results, [c.message for c in results.failures]


def test_both_systems_store_six_bits_in_as_many_bytes(
    made: dict[tuple[str, str], Result], modern: dict[tuple[str, str], Result]
) -> None:
    one, other = (weight_file(m["original", "6"], "Unet").stat().st_size for m in (made, modern))
    assert one == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_the_fitted_palette(
    made: dict[tuple[str, str], Result], toy: Path, bits: str
) -> None:
    checkpoint = open_checkpoint(toy)
    program = load_program(made["original", bits].path / "Unet.mlpackage")
    decoded = compressed_weights(program, checkpoint, "unet")
    tensors = checkpoint.component_tensors("unet")
    large = {n for n, t in tensors.items() if len(t.shape) > 1 and t.size >= 2048}
    assert decoded.keys() == large
    for name in ("conv_in.weight", "mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight"):
        if name not in decoded:
            continue
        value = tensors[name].read(np.float16)
        histogram = Histogram()
        histogram.add(value)
        palette = fit(histogram, int(bits))
        expected = palette.lut[palette.indices(value)]
        np.testing.assert_array_equal(decoded[name].value.numpy().reshape(-1), expected)


def test_embeddings_norms_biases_and_the_vae_stay(made: dict[tuple[str, str], Result]) -> None:
    result = made["original", "4"]
    for model in ("VAEDecoder", "VAEEncoder"):
        ops = {op.type for op in load_program(result.path / f"{model}.mlpackage").ops}
        assert not any(op.startswith("constexpr") for op in ops)
    ops = load_program(result.path / "TextEncoder.mlpackage").ops
    names = {op.outputs[0][0] for op in ops if op.type.startswith("constexpr")}
    assert names
    assert not any("embedding" in n or "norm" in n or n.endswith("bias") for n in names)


def test_files_are_as_small_as_promised(made: dict[tuple[str, str], Result], toy: Path) -> None:
    plan = make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))
    for planned in plan.artifacts:
        result = made[planned.artifact.attention, planned.artifact.bits]
        size = weight_file(result, "Unet").stat().st_size
        assert size == pytest.approx(plan.weight_bytes[planned.jobs["unet"]], rel=0.01)
    assert made["original", "6"].manifest["bits_per_weight"]["unet"] < 6.4


def test_variants_share_each_weight_file(made: dict[tuple[str, str], Result]) -> None:
    for bits in ("16", *BITS, "int8"):
        one, other = (weight_file(made[a, bits], "Unet") for a in ("original", "split_einsum"))
        assert one.samefile(other)


def test_it_is_repeatable(made: dict[tuple[str, str], Result], toy: Path, tmp_path: Path) -> None:
    again = convert(toy, tmp_path / "out", with_bits("6"))
    for model in ("Unet", "TextEncoder"):
        one, other = (weight_file(r["original", "6"], model) for r in (made, again))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("target", "bits", "says"),
    [
        ("macOS14", "3", "`3` needs a deployment target of macOS15"),
        ("macOS14", "int4", "`int4` needs a deployment target of macOS15"),
        ("macOS14", "mixed-1.0", "cannot average 1.0 bits"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(
    toy: Path, tmp_path: Path, target: str, bits: str, says: str
) -> None:
    recipe = with_bits(bits)
    with pytest.raises(InputError, match=says):
        convert(toy, tmp_path / "out", recipe + f'[target]\ndeployment = "{target}"\n')
    assert not (tmp_path / "out").exists()


# ---- verification ----


@pytest.mark.usefixtures("one_thread")
def test_int8_keeps_more_than_a_palette_of_six_bits(
    made: dict[tuple[str, str], Result], toy: Path
) -> None:
    def lowest(bits: str) -> float:
        results = check(made["original", bits].path / "TextEncoder2.mlpackage", toy)
        assert results, [c.message for c in results.failures]
        return min(
            c.metrics.snr_db for c in results.checks if c.level == "compression" and c.metrics
        )

    assert lowest("int8") > lowest("6") + 3


def check(package: Path, toy: Path, **options: Any) -> Results:
    return verify(package, open_checkpoint(toy), Question(**options))


@pytest.mark.usefixtures("one_thread")
def test_compression_is_not_charged_to_conversion(
    made: dict[tuple[str, str], Result], toy: Path
) -> None:
    results = check(made["original", "2"].path / "TextEncoder2.mlpackage", toy)
    assert results, [c.message for c in results.failures]
    lowest = {
        level: min(c.metrics.snr_db for c in results.checks if c.level == level and c.metrics)
        for level in ("conversion", "compression")
    }
    assert lowest["conversion"] > 45
    assert lowest["compression"] < 15


@pytest.mark.usefixtures("one_thread")
def test_a_recipes_gate_is_asked_of_every_output(
    made: dict[tuple[str, str], Result], toy: Path
) -> None:
    package = made["original", "4"].path / "TextEncoder.mlpackage"
    assert check(package, toy, minimum={"text_encoder": 1.0})
    results = check(package, toy, minimum={"text_encoder": 40.0})
    assert {(c.level, c.component) for c in results.failures} == {("compression", "text_encoder")}
    assert "snr_db >= 40 is asked" in results.failures[0].message


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", ["table", "indices"])
def test_one_wrong_palette_entry_is_found(
    made: dict[tuple[str, str], Result], toy: Path, tmp_path: Path, part: str
) -> None:
    source = made["original", "6"].path / "TextEncoder.mlpackage"
    package = Path(shutil.copytree(source, tmp_path / "TextEncoder.mlpackage"))
    ops = load_program(package).ops
    op = next(op for op in ops if "layers_1_mlp_fc1" in op.name and "lut" in op.attributes)
    constant = op.attributes["lut" if part == "table" else "indices"]
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    start = constant.offset + 64
    if part == "table":
        lut = np.frombuffer(bytes(data[start : start + 128]), np.float16).copy()
        lut[31] = lut[35]
        data[start : start + 128] = lut.tobytes()
    else:
        data[start : start + 96] = bytes(96)
    file.write_bytes(data)
    results = check(package, toy, levels=("compression",))
    (failure,) = results.failures
    assert (failure.component, failure.case) == ("text_encoder", "palettes")
    assert "encoder.layers.1.mlp.fc1.weight" in failure.message


@pytest.mark.usefixtures("one_thread")
def test_a_package_that_coremltools_palettized_is_verified_alike(
    made: dict[tuple[str, str], Result], toy: Path, tmp_path: Path
) -> None:
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    source = made["original", "16"].path / "TextEncoder.mlpackage"
    model = ct.models.MLModel(str(source), skip_model_load=True)
    settings = OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=2048)
    small = palettize_weights(model, OptimizationConfig(global_config=settings))
    small.save(str(tmp_path / "TextEncoder.mlpackage"))
    results = check(tmp_path / "TextEncoder.mlpackage", toy, levels=("conversion", "compression"))
    failed = {(c.level, c.case) for c in results.failures}
    assert failed <= {("compression", "palettes")}  # uniform palettes are not the best
    assert any(c.level == "compression" and c.metrics for c in results.checks)
