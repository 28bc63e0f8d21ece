"""A probe checks a package's own weights at another size, and says that it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.package.mlpackage import WEIGHTS
from convert.values import DeploymentTarget, Resolution
from tests.support.checkpoints import edit_checkpoint, write_component
from verify.artifact.probe import probe_package
from verify.artifact.stored import infer_compression
from verify.mil import load_program
from verify.question import Question
from verify.run import verify

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Resolution(64, 64)
LEVELS = ("conversion",)
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_a_probe_has_the_packages_own_weights(
    component: str, base: Checkpoint, base_artifact: Path, tmp_path: Path
) -> None:
    file = {"unet": "Unet", "vae_decoder": "VAEDecoder"}[component]
    shipped = base_artifact / f"{file}.mlpackage"
    package = probe_package(load_program(shipped), component, base, tmp_path, size=SMALL)
    assert (package / WEIGHTS).samefile(shipped / WEIGHTS)
    shapes = {f.name: f.shape for f in load_program(package).inputs}
    assert {"sample": (2, 4, 8, 8), "z": (1, 4, 8, 8)}[next(iter(shapes))] in shapes.values()


@pytest.mark.parametrize(
    ("bits", "deployment"),
    [("6", "macOS14"), ("int8", "macOS14"), ("3", "macOS15"), ("int8", "macOS15"),
     ("int4", "macOS15")],
)  # fmt: skip
def test_compressed_weights_are_probed_as_they_are(
    bits: str, deployment: DeploymentTarget, base: Checkpoint, tmp_path: Path
) -> None:
    shipped = write_component(
        tmp_path / "a.mlpackage", base, "unet", bits=bits, deployment=deployment
    )
    program = load_program(shipped)
    stored = infer_compression(program, base, "unet")
    assert {m.bits for _, m in stored.methods} <= {bits, "int8"}
    assert len(stored.methods) > 30
    package = probe_package(program, "unet", base, tmp_path / "probe", size=SMALL)
    assert (package / WEIGHTS).samefile(shipped / WEIGHTS)
    assert infer_compression(load_program(package), base, "unet") == stored
    levels = ("conversion", "compression")
    question = Question(runtime="torch", levels=levels, probe=SMALL, timesteps=(999,))
    results = verify(shipped, base, question)
    assert results, [c.message for c in results.failures]
    assert {c.level for c in results.checks} == {"conversion", "compression"}


def test_bisect_looks_at_a_probe(command: Run, base: Checkpoint, tmp_path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["time_embedding.linear_2.bias"].zero_()

    wrong = edit_checkpoint(base, tmp_path, "unet", change)
    package = write_component(tmp_path / "a.mlpackage", wrong, "unet", size=(512, 512))
    before, out = sorted(tmp_path.iterdir()), tmp_path / "out"
    code, said, _ = command(
        "bisect", package, "--source", base.path, "--case", "t=500", "--probe",
        "--out", out, "--json", "--quiet",
    )  # fmt: skip
    assert code == 1
    (found,) = json.loads(said)["bisections"]
    assert found["case"] == "t=500"
    assert found["divergence"]["op"] == "time_embedding_linear_2"
    assert found["divergence"]["cause"] == "weights"
    minimal = load_program(next(out.rglob("*.mlpackage")))
    assert minimal.ops
    assert sorted(tmp_path.iterdir()) == sorted([*before, out])


def test_a_probe_says_what_it_looked_at_and_leaves_nothing(
    base: Checkpoint, base_artifact: Path
) -> None:
    package = base_artifact / "Unet.mlpackage"
    before = sorted(base_artifact.iterdir())
    results = verify(
        package, base, Question(runtime="torch", levels=LEVELS, probe=SMALL, timesteps=(999, 37))
    )
    assert results, [c.message for c in results.failures]
    assert "the same weights at 64x64" in results.scope
    assert {c.case for c in results.checks} == {f"t={t} {h}" for t in (999, 37)
                                                for h in ("cond", "uncond")}  # fmt: skip
    assert sorted(base_artifact.iterdir()) == before


def test_a_wrong_weight_shows_in_a_probe(base: Checkpoint, tmp_path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["time_embedding.linear_2.bias"].zero_()

    wrong = edit_checkpoint(base, tmp_path, "unet", change)
    package = write_component(tmp_path / "a.mlpackage", wrong, "unet")
    results = verify(
        package, base, Question(runtime="torch", levels=LEVELS, probe=SMALL, timesteps=(500,))
    )
    assert {c.component for c in results.failures} == {"unet"}


def test_weights_arranged_otherwise_are_not_probed(base: Checkpoint, tmp_path: Path) -> None:
    wrong = edit_checkpoint(base, tmp_path, "vae", config={"norm_num_groups": 4})
    package = write_component(tmp_path / "a.mlpackage", wrong, "vae_decoder")
    program = load_program(package)
    for op in program.ops:  # as if another converter had named them
        if op.type == "const":
            op.outputs[0] = (f"x{op.outputs[0][0]}", op.outputs[0][1])
    with pytest.raises(InputError, match="not arranged as this version does it"):
        probe_package(program, "vae_decoder", base, tmp_path / "p", size=SMALL)


def test_pictures_are_not_probed(base: Checkpoint, base_artifact: Path) -> None:
    with pytest.raises(InputError, match="makes no pictures"):
        verify(base_artifact, base, Question(runtime="torch", levels=["sanity"], probe=SMALL))
    with pytest.raises(InputError, match="do not fall"):
        verify(base_artifact, base, Question(runtime="torch", levels=LEVELS, timesteps=(1, 999)))
