"""Golden bundles: a replay without the checkpoint says the same, and nothing else is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Resolution
from verify.golden import Golden, read_golden, write_golden
from verify.judge.checks import Results
from verify.question import Question
from verify.reference.recording import Recording, record
from verify.run import verify
from verify.sampling.sampling import Trace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(
    base: Checkpoint,
    recording: Recording,
    traces: tuple[Trace, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("golden") / "bundle"
    write_golden(path, base, recording, traces)
    return path


@pytest.fixture(scope="module")
def golden(bundle: Path) -> Golden:
    return read_golden(bundle)


def test_a_bundle_holds_every_tensor_and_no_weights(
    golden: Golden, recording: Recording, traces: tuple[Trace, ...]
) -> None:
    again = golden.recording.tensors()
    for name, tensor in recording.tensors().items():
        assert torch.equal(tensor, again[name]), name
        assert tensor.dtype == again[name].dtype
    for found, trace in zip(golden.traces, traces, strict=True):
        assert asdict(found.settings) == asdict(trace.settings)
        assert found.picture.timesteps == trace.picture.timesteps
        assert found.picture.sigmas == trace.picture.sigmas
        pairs = zip(found.noise + found.picture.latents, trace.noise + trace.picture.latents,
                    strict=True)  # fmt: skip
        assert all(torch.equal(a, b) for a, b in pairs)
        assert (found.picture.image == trace.picture.image).all()
        assert (found.start is None) == (trace.start is None)
        assert found.calls.keys() == trace.calls.keys()
        for component, calls in trace.calls.items():
            for a, b in zip(found.calls[component], calls, strict=True):
                assert a.inputs.keys() == b.inputs.keys()
                assert all(torch.equal(a.inputs[n], b.inputs[n]) for n in a.inputs)
                assert all(torch.equal(a.outputs[n], b.outputs[n]) for n in b.outputs)
    files = [p for p in golden.path.rglob("*.safetensors")]
    assert {p.name for p in files} == {"components.safetensors", "pictures.safetensors"}
    assert not any(part.tensors for part in golden.checkpoint.parts.values())


def test_ancestral_noise_and_token_ids_are_there(golden: Golden) -> None:
    text, image = golden.traces
    assert len(text.noise) == 1 + 5  # initial latents, and every step of Euler a
    assert len(image.noise) == 1 + 1 + 3  # the VAE's sample as well
    assert text.calls["text_encoder"][0].inputs["input_ids"].shape == (1, 77)
    assert image.calls["vae_encoder"][0].inputs["x"].shape == (1, 3, 96, 64)


def test_a_replay_needs_no_checkpoint(
    golden: Golden, base_artifact: Path, good: Results, traces: tuple[Trace, ...]
) -> None:
    results = verify(
        base_artifact,
        golden,
        Question(runtime="torch", levels=("structure", "conversion", "generation", "sanity")),
    )
    assert {c.level for c in results.failures} <= {"sanity"}
    assert "the reference is a recording, made with torch" in results.scope
    numbers = [c.metrics for c in results.checks if c.level == "conversion"]
    assert numbers == [c.metrics for c in good.checks if c.level == "conversion"]
    assert len(results.generations) == len(traces)


def test_compressed_weights_need_the_checkpoint(toy: Path, tmp_path: Path) -> None:
    source = open_checkpoint(toy)
    recipe = (
        'name = "toy"\nsource.path = "toy"\n'
        'matrix = { attention = ["original"], resolution = ["64x64"], bits = ["6"] }\n'
    )
    plan = make_plan(parse_recipe(recipe, where="test"), source, components=["text_encoder"])
    made = run(plan, Snapshot(toy, None, None, ()), tmp_path / "out")[0]
    recording = record(
        source, ["text_encoder"], resolution=Resolution(64, 64), fp16=["text_encoder"]
    )
    write_golden(tmp_path / "golden", source, recording, ())
    results = verify(
        made.path / "TextEncoder.mlpackage",
        read_golden(tmp_path / "golden"),
        Question(runtime="torch", levels=("conversion", "compression")),
    )
    assert results.exit_code() == 3
    (unsure,) = [c for c in results.checks if c.verdict == "indeterminate"]
    assert (unsure.level, unsure.component) == ("conversion", "text_encoder")
    assert "needs the checkpoint" in unsure.message
    assert [c for c in results.checks if c.level == "compression" and c.metrics]


def change_tensor(bundle: Path) -> None:
    data = bytearray((bundle / "pictures.safetensors").read_bytes())
    data[-100] ^= 1
    (bundle / "pictures.safetensors").write_bytes(data)


def lose_config(bundle: Path) -> None:
    (bundle / "checkpoint" / "unet" / "config.json").unlink()


def rewrite(key: str, value: object) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps({**manifest, key: value}))

    return change


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a changed tensor": (change_tensor, "another SHA-256 than the bundle's manifest"),
    "a lost file": (lose_config, "missing"),
    "another schema": (rewrite("schema", 2), "`schema` is 2"),
    "another kind": (rewrite("kind", "baseline"), "not the manifest of a golden bundle"),
    "more cases": (rewrite("cases", 3), "`cases` is the number 3; allowed is an object"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), "no golden bundle"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_bundle_is_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    spoil, says = SPOILT[what]
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(InputError, match=says):
        read_golden(copy)


def test_a_bundle_of_something_else_is_refused(
    bundle: Path, golden: Golden, artifact: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    rewrite("resolution", "96x64")(copy)
    with pytest.raises(InputError, match="96x64"):
        verify(artifact, read_golden(copy), Question(runtime="torch"))
    manifest = json.loads((artifact / "manifest.json").read_text())
    name = next(n for n in manifest["source"]["files"] if n.endswith(".safetensors"))
    manifest["source"]["files"][name] = "0" * 64
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"another checkpoint than the artifact's: {name} differs"):
        verify(artifact, golden, Question(runtime="torch"))


def test_a_bundle_is_not_written_over(bundle: Path, base: Checkpoint, recording: Recording) -> None:
    with pytest.raises(InputError, match="exists and is not empty"):
        write_golden(bundle, base, recording, ())


def test_a_sampler_of_another_kind_is_noticed(golden: Golden, base_artifact: Path) -> None:
    trace = golden.traces[0]
    other = replace(golden, traces=(replace(trace, noise=trace.noise[:-1]),))
    with pytest.raises(CannotExecute, match="more than the 5 times"):
        verify(base_artifact, other, Question(runtime="torch", levels=["generation"]))
    assert golden.recording.resolution == Resolution(64, 96)
