"""Level `weights`: what no output shows. Sound packages pass, every planted fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from release.compile.mlmodelc import compile_package
from tests.support.packages import edit_model, operations
from tests.support.weight_faults import PLANTS, stored_weights
from verify.judge.checks import Check
from verify.levels.weights import check_weights
from verify.mil import load_program

# The target that can store them → what is stored in it, as artifacts' bits and groups.
STORED = {"macOS14": ("16", "6", "int8"), "macOS15": ("3", "int4"), "groups": ("1",)}
FILES = {"unet": "Unet", "text_encoder_2": "TextEncoder2", "vae_decoder": "VAEDecoder"}


@pytest.fixture(scope="module")
def checkpoint(shapes: Mapping[str, Path]) -> Checkpoint:
    return open_checkpoint(shapes["base"])


@pytest.fixture(scope="module")
def artifacts(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifact folders by their bits."""
    found = {}
    for target, bits in STORED.items():
        group = "compress.group_size = 8\n" if target == "groups" else ""
        recipe = parse_recipe(
            f'name = "a"\nsource.path = "a"\n{group}'
            f'target.deployment = "{"macOS15" if target == "groups" else target}"\n'
            'compress.components = { vae_decoder = "4" }\n'
            * (bits != ("16",))
            + f'matrix = {{ attention = ["split_einsum"], resolution = ["64x64"], '
            f"bits = {list(bits)} }}\n",
            where="test",
        )
        out = tmp_path_factory.mktemp(target)
        plan = make_plan(recipe, checkpoint, components=list(FILES))
        for made in run(plan, Snapshot(checkpoint.path, None, None, ()), out, jobs=1):
            found[made.manifest["bits"]] = made.path
    return found


def checks(package: Path, component: str, source: Checkpoint) -> list[Check]:
    return list(check_weights(load_program(package), component, source))


def copied(artifact: Path, component: str, folder: Path) -> Path:
    name = f"{FILES[component]}.mlpackage"
    return Path(shutil.copytree(artifact / name, folder / name))


@pytest.mark.parametrize("bits", [b for bits in STORED.values() for b in bits])
def test_a_sound_package_passes(
    artifacts: Mapping[str, Path], checkpoint: Checkpoint, bits: str
) -> None:
    for component, file in FILES.items():
        found = checks(artifacts[bits] / f"{file}.mlpackage", component, checkpoint)
        assert [c.verdict for c in found] == ["pass"] * len(found), found
        forms = {
            weight.form
            for weight in stored_weights(
                artifacts[bits] / f"{file}.mlpackage", checkpoint, component
            ).values()
        }
        assert {c.case for c in found} == {"tensors", "plain", "own", "file", *forms}


def test_a_compiled_model_passes_and_its_faults_are_named(
    artifacts: Mapping[str, Path], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    package = copied(artifacts["6"], "unet", tmp_path)
    compiled = compile_package(package, tmp_path / "sound")
    assert all(c.verdict == "pass" for c in checks(compiled, "unet", checkpoint))
    (name,) = PLANTS["palettes"]["palette index"](
        package, checkpoint, "unet", np.random.default_rng(0)
    )
    compiled = compile_package(package, tmp_path / "spoilt")
    (wrong,) = (c for c in checks(compiled, "unet", checkpoint) if c.verdict == "fail")
    assert f"`{name}`[" in wrong.message


FORMS = (
    ("16", "plain"),
    ("6", "plain"),
    ("6", "palettes"),
    ("3", "palettes"),
    ("1", "palettes"),
    ("int8", "integers"),
    ("int4", "integers"),
)
# What is planted where: the VAE has palettes of 4 bits beside all but 16.
PLANTED = [
    (component, bits, form, fault)
    for bits, form in FORMS
    for component in FILES
    if (component, form) != ("vae_decoder", "integers")
    for fault in PLANTS[form]
]


@pytest.mark.parametrize(("component", "bits", "form", "fault"), PLANTED)
def test_a_fault_in_the_weights_is_named(
    artifacts: Mapping[str, Path],
    checkpoint: Checkpoint,
    tmp_path: Path,
    component: str,
    bits: str,
    form: str,
    fault: str,
) -> None:
    package = copied(artifacts[bits], component, tmp_path)
    random = np.random.default_rng(PLANTED.index((component, bits, form, fault)))
    spoilt = PLANTS[form][fault](package, checkpoint, component, random)
    failed = [c for c in checks(package, component, checkpoint) if c.verdict == "fail"]
    assert failed
    assert all(name in " ".join(c.message for c in failed) for name in spoilt), failed


def test_tensors_that_are_missing_or_that_nothing_takes_are_named(
    artifacts: Mapping[str, Path], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    package = copied(artifacts["16"], "unet", tmp_path)
    name = "conv_in_weight"

    def rename(model: Any) -> None:
        for op in operations(model):
            if op.outputs and op.outputs[0].name == name:
                op.outputs[0].name = "another"
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.name == name:
                        binding.name = "another"

    edit_model(package, rename)
    first = checks(package, "unet", checkpoint)[0]
    assert (first.case, first.verdict) == ("tensors", "fail")
    assert "`conv_in.weight`" in first.message
    assert "`another`" in first.message


def test_a_small_tensor_within_the_program_is_compared_too(
    artifacts: Mapping[str, Path], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    package = copied(artifacts["16"], "unet", tmp_path)
    name = "conv_out_bias"  # of four numbers

    def one_bit(model: Any) -> None:
        (op,) = (op for op in operations(model) if op.outputs and op.outputs[0].name == name)
        value = op.attributes["val"].immediateValue.tensor.bytes
        value.values = bytes([value.values[0] ^ 1, *value.values[1:]])

    assert name.replace("_bias", ".bias") not in stored_weights(package, checkpoint, "unet")
    edit_model(package, one_bit)
    (wrong,) = (c for c in checks(package, "unet", checkpoint) if c.verdict == "fail")
    assert "`conv_out.bias`[0] is " in wrong.message


def test_torch_has_as_many_threads_afterwards_as_before(
    artifacts: Mapping[str, Path], checkpoint: Checkpoint
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        checks(artifacts["6"] / "TextEncoder2.mlpackage", "text_encoder_2", checkpoint)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
