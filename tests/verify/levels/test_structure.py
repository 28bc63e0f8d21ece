"""Level structure: what a package and its folder must be, exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.package.mlpackage import WEIGHTS
from tests.support.checkpoints import write_component
from tests.support.packages import edit_manifest, edit_model, failing, operations
from verify.question import Evidence, Question
from verify.reference.recording import Recording
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_truncated_weight_file_fails_without_hiding_the_rest(
    artifact: Path, base: Checkpoint, recording: Recording
) -> None:
    weights = artifact / "Unet.mlpackage" / WEIGHTS
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[: len(data) // 2])
    results = verify(artifact, Evidence(base, recording=recording), Question(runtime="torch"))
    assert {"unet/weights", "unet/run", "unet/files"} <= failing(results)
    (message,) = (c.message for c in results.failures if c.case == "weights")
    assert "weight.bin: no blob record at offset" in message
    assert not any(case.startswith(("text", "vae")) for case in failing(results))


def rename_output(model: Any) -> None:
    for op in operations(model):
        for output in op.outputs:
            if output.name == "noise_pred":
                output.name = "noise"
    main = model.mlProgram.functions["main"]
    main.block_specializations[main.opset].outputs[:] = ["noise"]
    model.description.output[0].name = "noise"


def add_einsum(model: Any) -> None:
    op = next(op for op in operations(model) if op.type == "matmul")
    op.type = "einsum"


def shape_of(feature: Any) -> Any:
    return feature.type.multiArrayType.shape


PACKAGE_MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "inputs": (
        lambda m: m.description.input[0].type.multiArrayType.shape.__setitem__(0, 1),
        "unet",
    ),
    "outputs": (rename_output, "unet"),
    "format": (lambda m: setattr(m, "specificationVersion", 7), "unet"),
    "attention": (add_einsum, "unet"),
    "descriptions": (lambda m: setattr(m.description.input[1], "shortDescription", ""), "unet"),
    "metadata": (lambda m: setattr(m.description.metadata, "author", ""), "unet"),
}


@pytest.mark.parametrize("case", PACKAGE_MISTAKES)
def test_the_structure_is_exact(case: str, base: Checkpoint, tmp_path: Path) -> None:
    change, component = PACKAGE_MISTAKES[case]
    path = write_component(tmp_path / "Unet.mlpackage", base, component)
    assert verify(path, base, Question(levels=["structure"]))
    edit_model(path, change)
    if case == "outputs":
        with pytest.raises(InputError, match="gives noise, which no component"):
            verify(path, base, Question(levels=["structure"]))
        return
    assert failing(verify(path, base, Question(levels=["structure"]))) == {f"{component}/{case}"}


def test_inputs_in_another_order_than_the_functions_fail(base: Checkpoint, tmp_path: Path) -> None:
    path = write_component(tmp_path / "Unet.mlpackage", base, "unet")

    def swap(model: Any) -> None:
        inputs = list(model.description.input)
        del model.description.input[:]
        model.description.input.extend(reversed(inputs))

    edit_model(path, swap)
    results = verify(path, base, Question(levels=["structure"]))
    (message,) = (c.message for c in results.failures if c.case == "inputs")
    assert message.startswith("in another order than the function's: sample, timestep, ")


def test_the_last_value_of_a_large_weight_is_looked_at(base: Checkpoint, tmp_path: Path) -> None:
    path = write_component(tmp_path / "Unet.mlpackage", base, "unet")
    tensor = base.component_tensors("unet")["conv_out.weight"].read(np.float16)
    data = (path / WEIGHTS).read_bytes()
    end = data.index(tensor.tobytes()) + tensor.nbytes
    (path / WEIGHTS).write_bytes(data[: end - 2] + np.float16("nan").tobytes() + data[end:])
    results = verify(path, base, Question(levels=["structure"]))
    (message,) = (c.message for c in results.failures if c.case == "weights")
    assert message == f"conv_out_weight{[size - 1 for size in tensor.shape]} is nan"


def test_an_output_in_float16_fails(base: Checkpoint, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        array = model.description.output[0].type.multiArrayType
        array.dataType = array.FLOAT16

    path = write_component(tmp_path / "a.mlpackage", base, "unet")
    edit_model(path, change)
    results = verify(path, base, Question(levels=["structure"]))
    assert failing(results) == {"unet/outputs"}
    assert "noise_pred is fp16" in results.failures[0].message


def test_a_missing_component_fails_by_name(
    artifact: Path, base: Checkpoint, recording: Recording
) -> None:
    shutil.rmtree(artifact / "TextEncoder2.mlpackage")
    for levels in (["structure"], ["structure", "conversion"]):
        results = verify(
            artifact, Evidence(base, recording=recording), Question(runtime="torch", levels=levels)
        )
        missing = [c for c in results.failures if c.component == "text_encoder_2"]
        assert [c.message for c in missing] == ["TextEncoder2.mlpackage is missing"]


def test_exchanged_text_encoders_fail(
    artifact: Path, base: Checkpoint, recording: Recording
) -> None:
    first, second = artifact / "TextEncoder.mlpackage", artifact / "TextEncoder2.mlpackage"
    first.rename(artifact / "x")
    second.rename(first)
    (artifact / "x").rename(second)
    found = failing(
        verify(artifact, Evidence(base, recording=recording), Question(runtime="torch"))
    )
    assert {"text_encoder/outputs", "text_encoder_2/outputs"} <= found


VAE = ("vae_decoder", "vae_encoder")
CLAIMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "attention": ({"attention": "original"}, {"unet/attention"}),
    "bits": ({"bits": "6"}, {"unet/bits", "text_encoder_2/bits"}),
    "deployment": (
        {"deployment": "macOS15"},
        {f"{c}/format" for c in ("unet", "text_encoder", "text_encoder_2", *VAE)},
    ),
    "vae_precision": (
        {"vae_precision": "float16"},
        {f"{c}/{case}" for c in VAE for case in ("inputs", "precision")},
    ),
    "resolution": (
        {"resolution": "96x64"},
        {
            f"{c}/{case}"
            for c in ("vae_decoder", "vae_encoder", "unet")
            for case in ("inputs", "outputs")
        },
    ),
    "unknown value": ({"attention": "flash"}, {"artifact/manifest"}),
    "missing key": ({"bits": None}, {"artifact/manifest"}),
    "other schema": ({"schema": 2}, {"artifact/manifest", "artifact/components"}),
    "unlisted": ({"components": {"unet": "Unet.mlpackage"}}, {"artifact/components"}),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_the_manifest_claims_must_be_so(claim: str, artifact: Path, base: Checkpoint) -> None:
    changes, expected = CLAIMS[claim]
    edit_manifest(artifact, **changes)
    assert failing(verify(artifact, base, Question(levels=["structure"]))) == expected


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "manifest.json"])
def test_a_missing_file_fails(file: str, artifact: Path, base: Checkpoint) -> None:
    (artifact / file).unlink()
    messages = [c.message for c in verify(artifact, base, Question(levels=["structure"])).failures]
    assert any(message == f"{file} is missing" for message in messages)


def test_merges_must_end_in_a_newline(artifact: Path, base: Checkpoint) -> None:
    text = (artifact / "merges.txt").read_text("utf-8")
    (artifact / "merges.txt").unlink()
    (artifact / "merges.txt").write_text(text.rstrip("\n"), "utf-8")
    results = verify(artifact, base, Question(levels=["structure"]))
    assert failing(results) == {"artifact/files", "artifact/tokenizer"}
