"""bisect: every mistake is named with its op, its torch module and its cause."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.values import Resolution
from tests.support.checkpoints import edit_checkpoint, write_component
from tests.support.packages import edit_model, edit_weights, operations
from verify.bisect.bisect import Bisection, bisect, worst_ops
from verify.bisect.ops import worst_ops_of
from verify.bisect.report import lines, write_findings
from verify.judge.checks import Results
from verify.judge.metrics import compare
from verify.mil import load_program
from verify.reference.recording import Recording
from verify.reports.report import to_json
from verify.runtime.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("one_thread")

Q_PROJ = "encoder.layers.1.self_attn.q_proj"


def look(package: Path, source: Checkpoint, component: str, recording: Recording) -> Bisection:
    case = recording.cases[component][0]
    size = None if component.startswith("text") else Resolution(64, 96)
    program = load_program(package)
    return bisect(program, source, component, case, resolution=size)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "vae_decoder"])
def test_what_is_right_does_not_diverge(
    component: str, base: Checkpoint, recording: Recording, base_artifact: Path
) -> None:
    package = base_artifact / f"{COMPONENTS[component].file}.mlpackage"
    found = look(package, base, component, recording)
    assert found, list(lines(found))
    assert found.modules > 30
    assert found.to_json()["divergence"] is None


# ---- weights ----


def zero(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda weights: weights[name].zero_()


def swap_heads(weights: dict[str, torch.Tensor]) -> None:
    first, second, *rest = weights[f"{Q_PROJ}.weight"].chunk(3)
    weights[f"{Q_PROJ}.weight"] = torch.cat([second, first, *rest])


def from_another_layer(weights: dict[str, torch.Tensor]) -> None:
    other = Q_PROJ.replace("layers.1", "layers.2")
    weights[f"{Q_PROJ}.weight"] = weights[f"{other}.weight"].clone()


WRONG_WEIGHTS: dict[str, tuple[Any, str, str]] = {
    "lost bias": (zero(f"{Q_PROJ}.bias"), Q_PROJ, "all zeros"),
    "swapped heads": (swap_heads, Q_PROJ, "the same values in another order"),
    "from another layer": (from_another_layer, Q_PROJ, "it is `encoder.layers.2.self_attn.q_proj"),
}


@pytest.mark.parametrize("mistake", WRONG_WEIGHTS)
def test_a_wrong_weight_is_named(
    mistake: str, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    change, module, message = WRONG_WEIGHTS[mistake]
    wrong = edit_checkpoint(base, tmp_path, "text_encoder", change)
    package = write_component(tmp_path / "a.mlpackage", wrong, "text_encoder")
    found = look(package, base, "text_encoder", recording).divergence
    assert found is not None
    assert (found.op, found.module, found.cause) == (module.replace(".", "_"), module, "weights")
    assert message in found.message
    assert found.graph_snr_db is not None
    assert found.graph_snr_db > 60
    assert found.local_snr_db is not None
    assert found.local_snr_db < 40


def test_not_a_number_in_one_weight_is_named(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    package = write_component(tmp_path / "a.mlpackage", base, "vae_decoder")
    edit_weights(package, lambda data: data[128:132].view(np.float32).fill(math.nan))
    found = look(package, base, "vae_decoder", recording).divergence
    assert found is not None
    assert found.cause == "weights"
    assert found.op == "decoder_conv_in"
    assert "is nan at [0]" in found.message
    assert found.local_snr_db is None


def test_one_wrong_palette_entry_is_named(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    package = write_component(tmp_path / "a.mlpackage", base, "text_encoder_2", bits="6")
    assert look(package, base, "text_encoder_2", recording)
    op = next(op for op in load_program(package).ops if "lut" in op.attributes)
    start = op.attributes["lut"].offset + 64
    edit_weights(package, lambda data: data[start + 20 : start + 22].view(np.float16).fill(0.2))
    found = look(package, base, "text_encoder_2", recording).divergence
    assert found is not None
    assert found.cause == "palette"
    assert re.search(r"entry 0\.2 stands for \d+ weights of `encoder", found.message)


# ---- graphs ----


def edited(package: Path, base: Checkpoint, component: str, change: Callable[[Any], Any]) -> Path:
    write_component(package, base, component, attention="split_einsum")
    edit_model(package, lambda model: change(operations(model)))
    return package


def named(ops: Any, name: str) -> Any:
    return next(op for op in ops if op.outputs[0].name == name)


def lose_bias(ops: Any) -> None:
    del named(ops, Q_PROJ.replace(".", "_")).inputs["bias"]


def wrong_axis(ops: Any) -> None:
    softmax = next(op for op in ops if op.type == "softmax")
    first = next(op for op in ops if op.type == "const" and "axis" in op.outputs[0].name)
    added = ops.add()
    added.CopyFrom(first)
    added.outputs[0].name = "wrong_axis"
    del added.attributes["name"]
    added.attributes["val"].immediateValue.tensor.ints.values[0] = 2
    ops.insert(0, ops.pop())
    softmax.inputs["axis"].arguments[0].name = "wrong_axis"


def wrong_scale(ops: Any) -> None:
    scale = next(op for op in ops if op.type == "mul" and "self_attn" in op.outputs[0].name)
    name = scale.inputs["y"].arguments[0].name
    tensor = named(ops, name).attributes["val"].immediateValue.tensor
    tensor.bytes.values = np.float16(1).tobytes()


def from_wrong_value(ops: Any) -> None:
    query = named(ops, Q_PROJ.replace(".", "_"))
    query.inputs["x"].arguments[0].name = "encoder_layers_0"


WRONG_GRAPHS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "lost bias": (lose_bias, Q_PROJ.replace(".", "_"), "it has no bias"),
    "wrong axis": (wrong_axis, "encoder_layers_0_self_attn_softmax", "axis is 2, it should be -1"),
    "wrong constant": (wrong_scale, "encoder_layers_0_self_attn_mul", "y is 1, it should be"),
    "wrong input": (from_wrong_value, Q_PROJ.replace(".", "_"), "x is encoder_layers_0, it should"),
}


@pytest.mark.parametrize("mistake", WRONG_GRAPHS)
def test_a_wrong_op_is_named(
    mistake: str, base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    change, op, message = WRONG_GRAPHS[mistake]
    package = edited(tmp_path / "a.mlpackage", base, "text_encoder", change)
    found = look(package, base, "text_encoder", recording).divergence
    assert found is not None
    assert (found.op, found.cause) == (op, "graph")
    assert message in found.message
    assert found.module is not None
    assert found.op.startswith(found.module.replace(".", "_"))


def test_a_wrong_epsilon_is_named(base: Checkpoint, recording: Recording, tmp_path: Path) -> None:
    wrong = edit_checkpoint(base, tmp_path, "text_encoder_2", config={"layer_norm_eps": 1e-1})
    package = write_component(tmp_path / "a.mlpackage", wrong, "text_encoder_2")
    found = look(package, base, "text_encoder_2", recording).divergence
    assert found is not None
    assert (found.op, found.cause) == ("encoder_layers_0_layer_norm1", "graph")
    assert re.match(r"epsilon is 0\.0999.*, it should be 1\.00.*e-05", found.message)


def test_swapped_head_slices_of_the_unet_are_named(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    where = "down_blocks_2_attentions_0_transformer_blocks_0_attn1_slice_by_index"

    def swap(ops: Any) -> None:
        first, second = named(ops, where), named(ops, f"{where}_1")
        for key in ("begin", "end"):
            one, other = first.inputs[key].arguments[0], second.inputs[key].arguments[0]
            one.name, other.name = other.name, one.name

    package = edited(tmp_path / "a.mlpackage", base, "unet", swap)
    found = look(package, base, "unet", recording).divergence
    assert found is not None
    assert (found.op, found.cause) == (where, "graph")
    assert found.module == "down_blocks.2.attentions.0.transformer_blocks.0.attn1"
    assert found.propagated_snr_db is not None


def test_a_graph_with_other_names_is_followed_by_its_weights(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    def rename(ops: Any) -> None:
        new: dict[str, str] = {}
        for number, op in enumerate(ops):
            for argument in (b for a in op.inputs.values() for b in a.arguments):
                argument.name = new.get(argument.name, argument.name)
            if op.type == "const" or op.outputs[0].name in COMPONENTS["text_encoder"].outputs:
                continue
            new[op.outputs[0].name] = f"var_{number}"
            op.outputs[0].name = f"var_{number}"
            op.attributes["name"].immediateValue.tensor.strings.values[0] = f"var_{number}"

    package = edited(tmp_path / "a.mlpackage", base, "text_encoder", rename)
    assert look(package, base, "text_encoder", recording)
    edit_model(package, lambda model: wrong_softmax(operations(model)))
    found = look(package, base, "text_encoder", recording).divergence
    assert found is not None
    assert found.cause == "graph"
    assert found.segment.module == "encoder.layers.0.self_attn.out_proj"


def wrong_softmax(ops: Any) -> None:
    next(op for op in ops if op.type == "softmax").type = "exp_of_nothing"
    op = next(op for op in ops if op.type == "exp_of_nothing")
    op.type = "relu"
    del op.inputs["axis"]


# ---- precision ----


@pytest.fixture(scope="module")
def overflowing(
    base: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Path]:
    """A checkpoint whose second feed-forward leaves fp16's range, and its text encoder."""
    folder = tmp_path_factory.mktemp("overflow")

    def scale(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.layers.1.mlp.fc1.weight"].mul_(5e4)

    source = edit_checkpoint(base, folder, "text_encoder", scale)
    return source, write_component(folder / "a.mlpackage", source, "text_encoder")


def test_the_first_overflow_is_named(
    overflowing: tuple[Checkpoint, Path], recording: Recording
) -> None:
    source, package = overflowing
    found = look(package, source, "text_encoder", recording)
    assert found.overflow is not None
    assert found.overflow.segment.ops[0].name == "encoder_layers_1_mlp_fc1"
    assert found.overflow.module == "encoder.layers.1.mlp.fc1"
    assert found.overflow.local
    assert found.overflow.largest > 65504
    assert found.divergence is not None
    assert (found.divergence.op, found.divergence.cause) == (
        "encoder_layers_1_mlp_fc1",
        "precision",
    )
    assert "overflows fp16" in "\n".join(lines(found))
    json.dumps(found.to_json(), allow_nan=False)


def test_the_worst_ops_come_first_with_local_and_propagated_error(
    base: Checkpoint, recording: Recording, base_artifact: Path
) -> None:
    program = load_program(base_artifact / "TextEncoder2.mlpackage")
    case = recording.cases["text_encoder_2"][0]
    modules = ["encoder.layers.0.mlp.fc1", "encoder.layers.0"]
    found = worst_ops(program, case.inputs, limit=8, modules=modules)
    assert len(found) == 8
    snr = [op["local_snr_db"] for op in found]
    assert snr == sorted(snr)
    assert all(60 < op["local_snr_db"] < 90 and op["propagated_snr_db"] > 45 for op in found)
    assert {op["op"]: op["type"] for op in found}.items() <= {
        op.name: op.type for op in program.ops
    }.items()


def test_a_report_names_the_worst_ops_and_their_modules(
    base: Checkpoint, recording: Recording, base_artifact: Path, good: Results
) -> None:
    programs = {
        name: load_program(base_artifact / f"{COMPONENTS[name].file}.mlpackage")
        for name in ("text_encoder", "vae_decoder")
    }
    inputs = {name: recording.cases[name][0].inputs for name in programs}
    found = worst_ops_of(programs, base, inputs)
    assert found.keys() == {"text_encoder"}  # the VAE computes in float32
    assert all(op["module"].startswith("encoder.layers.") for op in found["text_encoder"])
    assert "worst_ops" not in to_json(good)
    assert to_json(replace(good, worst_ops=found))["worst_ops"] == found


# ---- minimal packages ----


def test_the_minimal_package_reproduces_the_divergence(
    base: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    wrong = edit_checkpoint(base, tmp_path, "text_encoder", swap_heads)
    package = write_component(tmp_path / "a.mlpackage", wrong, "text_encoder")
    found = look(package, base, "text_encoder", recording)
    (minimal,) = write_findings([(load_program(package), found)], tmp_path / "found")
    evaluator = Evaluator(minimal)
    outputs = evaluator.run(load_file(minimal.parent / "inputs.safetensors"))
    (reference,) = load_file(minimal.parent / "reference.safetensors").values()
    assert found.divergence is not None
    snr = compare(reference, outputs[found.divergence.segment.value]).snr_db
    assert snr == pytest.approx(found.divergence.typed_snr_db, abs=0.5)
    assert len(evaluator.program.ops) < 12
    assert sum(f.stat().st_size for f in minimal.rglob("*")) < 20_000
    assert "q_proj" in (minimal.parent / "README.md").read_text()
    with pytest.raises(InputError, match="not an empty folder"):
        write_findings([(load_program(package), found)], tmp_path / "found")


def test_the_minimal_package_of_an_overflow_overflows(
    overflowing: tuple[Checkpoint, Path], recording: Recording, tmp_path: Path
) -> None:
    source, package = overflowing
    found = look(package, source, "text_encoder", recording)
    written = write_findings([(load_program(package), found)], tmp_path)
    minimal = next(path for path in written if path.parent.name == "overflow")
    inputs = load_file(minimal.parent / "inputs.safetensors")
    for mode, finite in (("typed", False), ("fp32", True)):
        (output,) = Evaluator(minimal, mode=mode).run(inputs).values()  # type: ignore[arg-type]
        assert bool(torch.isfinite(output).all()) == finite
