"""Verification: what is right passes, and every mistake a converter can make does not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from checkpoints import write_component
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint, open_checkpoint
from convert.download import Snapshot
from convert.errors import CannotExecute, InputError
from convert.mlpackage import MODEL, WEIGHTS
from convert.plan import make_plan
from convert.recipe import parse_recipe
from convert.run import run
from convert.values import Resolution
from verify import report
from verify.checks import Results
from verify.metrics import compare
from verify.policy import load_policy
from verify.recording import record, token_ids
from verify.reference import Reference
from verify.run import verify
from verify.runtimes import TorchRuntime, can_predict, choose
from verify.schedule import TIMESTEPS

RECIPE = """
name = "base"
[source]
path = "base"
[matrix]
attention = ["split_einsum"]
resolution = ["64x96"]
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(shapes: Mapping[str, Path]) -> Checkpoint:
    return open_checkpoint(shapes["base"])


@pytest.fixture(scope="module")
def finished(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = make_plan(parse_recipe(RECIPE, where="test"), source)
    out = tmp_path_factory.mktemp("verify") / "out"
    return run(plan, Snapshot(source.path, None, None, ()), out)[0].path


@pytest.fixture(scope="module")
def good(finished: Path, source: Checkpoint) -> Results:
    return verify(finished, source, runtime="torch")


@pytest.fixture
def artifact(finished: Path, tmp_path: Path) -> Path:
    """A finished artifact that the test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "artifact"))


def failing(results: Results) -> set[str]:
    return {f"{check.component}/{check.case}" for check in results.failures}


# ---- what is right ----


def test_a_good_artifact_passes(good: Results, source: Checkpoint) -> None:
    assert good, [(c.place, c.message) for c in good.failures]
    assert good.exit_code() == 0
    assert {c.component for c in good.checks} == {*source.components, "artifact"}
    cases = {c.case for c in good.checks if c.component == "unet" and c.level == "conversion"}
    assert cases == {f"t={t} {half}" for t in TIMESTEPS for half in ("cond", "uncond")}
    outputs = {c.output for c in good.checks if c.component == "text_encoder_2" and c.output}
    assert outputs == {"hidden_embeds", "pooled_outputs"}


def test_the_noise_floor_is_kept_beside_the_metrics(good: Results) -> None:
    for check in good.checks:
        if check.level == "conversion":
            assert (check.fp16 is None) == check.component.startswith("vae")
            assert ("fp16_error_ratio" in check.gate) == (check.fp16 is not None)


@pytest.mark.parametrize("shape", ["refiner", "inpainting"])
def test_other_kinds_of_checkpoint_are_verified_alike(
    shape: str, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    source = open_checkpoint(shapes[shape])
    path = write_component(tmp_path / "a.mlpackage", source, "unet")
    assert verify(path, source, runtime="torch")


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "vae_decoder"])
def test_a_package_alone_is_recognised_by_its_interface(
    component: str, finished: Path, source: Checkpoint, tmp_path: Path
) -> None:
    write_component(tmp_path / "any.mlpackage", source, component)
    results = verify(tmp_path / "any.mlpackage", source, runtime="torch")
    assert results
    assert {check.component for check in results.checks} == {component}


def test_a_text_encoder_does_not_cost_a_denoising_run(source: Checkpoint) -> None:
    told: list[str] = []
    recording = record(
        source, ["text_encoder"], resolution=Resolution(64, 64), progress=told.append
    )
    assert recording.cases.keys() == {"text_encoder"}
    assert len(told) == 4
    assert not any("unet" in line for line in told)


# ---- the recording ----


def test_the_recording_is_of_a_real_run(source: Checkpoint) -> None:
    first = record(source, source.components, resolution=Resolution(64, 96))
    again = record(source, source.components, resolution=Resolution(64, 96))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    cases = first.cases["unet"]
    assert [int(case.inputs["timestep"][0]) for case in cases] == list(TIMESTEPS)
    for case in cases:
        assert case.inputs["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 2
        assert {tensor.dtype for tensor in case.inputs.values()} == {torch.float16}
        assert 0.5 < float(case.inputs["sample"].float().std()) < 8
    assert float(first.cases["vae_encoder"][0].inputs["x"].abs().max()) <= 1


def test_a_refiner_is_told_an_aesthetic_score(shapes: Mapping[str, Path]) -> None:
    source = open_checkpoint(shapes["refiner"])
    case = record(source, ["unet"], resolution=Resolution(64, 96)).cases["unet"][0]
    assert case.inputs["time_ids"].tolist() == [[96, 64, 0, 0, 2.5], [96, 64, 0, 0, 6.0]]


def test_token_ids_are_those_of_the_checkpoints_tokenizers(source: Checkpoint) -> None:
    vocabulary = json.loads(source.tokenizers["tokenizer"].vocab)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    for component, pad in (("text_encoder", end), ("text_encoder_2", vocabulary["!"])):
        empty, word, long = token_ids(source, component, ["", "the", "the horse " * 77])
        assert empty.tolist() == [start, end] + [pad] * 75
        assert word.tolist() == [start, vocabulary["the</w>"], end] + [pad] * 74
        assert int(long[-1]) == end
        assert pad == end or pad not in long


@pytest.mark.parametrize("form", [{"variant": "fp16"}, {"max_shard_size": "300KB"}])
def test_the_reference_reads_every_form_of_weight_files(
    form: dict[str, Any], source: Checkpoint, tmp_path: Path
) -> None:
    from checkpoints import make_checkpoint

    other = open_checkpoint(make_checkpoint(tmp_path / "base", **form))
    case = record(source, ["unet"], resolution=Resolution(64, 64)).cases["unet"][0]
    with Reference(other, "unet") as unet:
        assert compare(case.outputs["noise_pred"], unet(case.inputs)["noise_pred"]).snr_db > 120


def test_a_reference_with_a_missing_weight_is_no_reference(
    source: Checkpoint, tmp_path: Path
) -> None:
    broken = edited(source, tmp_path, "unet", lambda weights: weights.pop("conv_in.bias"))
    with pytest.raises(InputError, match=r"conv_in\.bias"):
        Reference(broken, "unet")


# ---- mistakes in the weights and in the network ----


def edited(
    source: Checkpoint,
    folder: Path,
    part: str,
    change: Callable[[dict[str, torch.Tensor]], Any] = lambda _: None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A copy of the checkpoint with other weights or another config."""
    path = Path(shutil.copytree(source.path, folder / "edited"))
    (file,) = (path / part).glob("*.safetensors")
    # transformers has written CLIP's names with and without this prefix
    weights = {k.removeprefix("text_model."): v for k, v in load_file(file).items()}
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, file, {"format": "pt"})
    settings = json.loads((path / part / "config.json").read_text())
    (path / part / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    return open_checkpoint(path)


def swap_heads(weights: dict[str, torch.Tensor]) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    first, second, *rest = weights[name].chunk(4)
    weights[name] = torch.cat([second, first, *rest])


def drop_bias(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights[name].zero_()


def transpose_kernel(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.update({name: weights[name].transpose(2, 3)})


WRONG_WEIGHTS = {
    "swapped heads": ("unet", swap_heads),
    "dropped bias": ("unet", drop_bias("time_embedding.linear_2.bias")),
    "transposed kernel": ("unet", transpose_kernel("up_blocks.0.resnets.0.conv1.weight")),
    "dropped bias, text": ("text_encoder", drop_bias("encoder.layers.0.self_attn.v_proj.bias")),
    "transposed kernel, VAE": ("vae_decoder", transpose_kernel("decoder.conv_in.weight")),
    "dropped bias, VAE": ("vae_encoder", drop_bias("encoder.mid_block.resnets.0.conv1.bias")),
}
WRONG_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong epsilon": ("unet", {"norm_eps": 1e-1}),
    "wrong activation": ("unet", {"act_fn": "gelu"}),
    "shifted time embedding": ("unet", {"freq_shift": 1}),
    "sine and cosine exchanged": ("unet", {"flip_sin_to_cos": False}),
    "wrong activation, text": ("text_encoder", {"hidden_act": "gelu"}),
    "wrong epsilon, text": ("text_encoder_2", {"layer_norm_eps": 1e-1}),
    "wrong end of text": ("text_encoder_2", {"eos_token_id": 0}),
    "wrong groups, VAE": ("vae_decoder", {"norm_num_groups": 4}),
}


@pytest.mark.parametrize("mistake", WRONG_WEIGHTS)
def test_a_mistake_in_the_weights_fails(mistake: str, source: Checkpoint, tmp_path: Path) -> None:
    component, change = WRONG_WEIGHTS[mistake]
    part = "vae" if component.startswith("vae") else component
    wrong = edited(source, tmp_path, part, change)
    path = write_component(tmp_path / "a.mlpackage", wrong, component)
    results = verify(path, source, runtime="torch")
    assert results.verdict == "fail"
    assert {(c.component, c.level) for c in results.failures} == {(component, "conversion")}


@pytest.mark.parametrize("mistake", WRONG_NETWORKS)
def test_a_mistake_in_the_network_fails(mistake: str, source: Checkpoint, tmp_path: Path) -> None:
    component, config = WRONG_NETWORKS[mistake]
    part = "vae" if component.startswith("vae") else component
    wrong = edited(source, tmp_path, part, config=config)
    path = write_component(tmp_path / "a.mlpackage", wrong, component)
    results = verify(path, source, runtime="torch")
    assert {(c.component, c.level) for c in results.failures} == {(component, "conversion")}


# ---- mistakes in the package ----


def edit_model(package: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a package's protobuf."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).unlink()  # it may be a hard link to the cache's
    (package / MODEL).write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    main = model.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


def edit_weights(package: Path, change: Callable[[np.ndarray], Any]) -> None:
    """Rewrite a package's weight file, as bytes."""
    data = bytearray((package / WEIGHTS).read_bytes())
    change(np.frombuffer(data, np.uint8))
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).write_bytes(data)


def unscale(model: Any) -> None:
    """Turn the factor of one attention's weights into 1."""
    ops = operations(model)
    scale = next(op for op in ops if op.type == "mul" and "attn1" in op.outputs[0].name)
    name = scale.inputs["y"].arguments[0].name
    const = next(op for op in ops if op.type == "const" and op.outputs[0].name == name)
    tensor = const.attributes["val"].immediateValue.tensor
    tensor.bytes.values = np.float16(1).tobytes()


def test_unscaled_attention_fails(source: Checkpoint, tmp_path: Path) -> None:
    path = write_component(tmp_path / "a.mlpackage", source, "unet")
    edit_model(path, unscale)
    assert any(case.startswith("unet/t=") for case in failing(verify(path, source)))


def test_not_a_number_fails_and_is_found(source: Checkpoint, tmp_path: Path) -> None:
    path = write_component(tmp_path / "a.mlpackage", source, "unet")
    edit_weights(path, lambda data: data[128:130].view(np.float16).fill(math.nan))
    results = verify(path, source, runtime="torch")
    assert "unet/weights" in failing(results)
    bad = [c for c in results.failures if c.level == "conversion"]
    assert len(bad) == 2 * len(TIMESTEPS)
    assert all(c.metrics and not c.metrics.finite and "nan" in c.message for c in bad)
    assert json.loads(report.json_text(results))["verdict"] == "fail"


def test_a_truncated_weight_file_fails_without_hiding_the_rest(
    artifact: Path, source: Checkpoint
) -> None:
    weights = artifact / "Unet.mlpackage" / WEIGHTS
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[: len(data) // 2])
    results = verify(artifact, source, runtime="torch")
    assert {"unet/weights", "unet/run", "artifact/files"} <= failing(results)
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
def test_the_structure_is_exact(case: str, source: Checkpoint, tmp_path: Path) -> None:
    change, component = PACKAGE_MISTAKES[case]
    path = write_component(tmp_path / "Unet.mlpackage", source, component)
    assert verify(path, source, levels=["structure"])
    edit_model(path, change)
    if case == "outputs":
        with pytest.raises(InputError, match="gives noise, which no component"):
            verify(path, source, levels=["structure"])
        return
    assert failing(verify(path, source, levels=["structure"])) == {f"{component}/{case}"}


def test_an_output_in_float16_fails(source: Checkpoint, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        array = model.description.output[0].type.multiArrayType
        array.dataType = array.FLOAT16

    path = write_component(tmp_path / "a.mlpackage", source, "unet")
    edit_model(path, change)
    results = verify(path, source, levels=["structure"])
    assert failing(results) == {"unet/outputs"}
    assert "noise_pred is fp16" in results.failures[0].message


# ---- mistakes in the folder ----


def edit_manifest(artifact: Path, **changes: Any) -> None:
    file = artifact / "manifest.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_a_missing_component_fails_by_name(artifact: Path, source: Checkpoint) -> None:
    shutil.rmtree(artifact / "TextEncoder2.mlpackage")
    for levels in (["structure"], ["structure", "conversion"]):
        results = verify(artifact, source, runtime="torch", levels=levels)
        missing = [c for c in results.failures if c.component == "text_encoder_2"]
        assert [c.message for c in missing] == ["TextEncoder2.mlpackage is missing"]


def test_exchanged_text_encoders_fail(artifact: Path, source: Checkpoint) -> None:
    first, second = artifact / "TextEncoder.mlpackage", artifact / "TextEncoder2.mlpackage"
    first.rename(artifact / "x")
    second.rename(first)
    (artifact / "x").rename(second)
    found = failing(verify(artifact, source, runtime="torch"))
    assert {"text_encoder/outputs", "text_encoder_2/outputs"} <= found


VAE = ("vae_decoder", "vae_encoder")
CLAIMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "attention": ({"attention": "original"}, {"unet/attention"}),
    "bits": ({"bits": "6"}, {"unet/bits"}),
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
def test_what_the_manifest_claims_must_be_so(
    claim: str, artifact: Path, source: Checkpoint
) -> None:
    changes, expected = CLAIMS[claim]
    edit_manifest(artifact, **changes)
    assert failing(verify(artifact, source, levels=["structure"])) == expected


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "manifest.json"])
def test_a_missing_file_fails(file: str, artifact: Path, source: Checkpoint) -> None:
    (artifact / file).unlink()
    messages = [c.message for c in verify(artifact, source, levels=["structure"]).failures]
    assert any(message == f"{file} is missing" for message in messages)


def test_merges_must_end_in_a_newline(artifact: Path, source: Checkpoint) -> None:
    text = (artifact / "merges.txt").read_text("utf-8")
    (artifact / "merges.txt").unlink()
    (artifact / "merges.txt").write_text(text.rstrip("\n"), "utf-8")
    results = verify(artifact, source, levels=["structure"])
    assert failing(results) == {"artifact/files", "artifact/tokenizer"}


# ---- wrong usage ----


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"levels": ["structur"]}, "unknown level `structur`"),
        ({"runtime": "torhc"}, "unknown runtime `torhc`"),
        ({"components": ["vae"]}, "no component `vae`"),
        ({"device": "tpu"}, "no device `tpu`"),
    ],
)
def test_unknown_options_are_refused(
    options: dict[str, Any], problem: str, finished: Path, source: Checkpoint
) -> None:
    with pytest.raises(InputError, match=problem):
        verify(finished, source, **{"runtime": "torch", **options})


def test_what_is_no_artifact_is_refused(tmp_path: Path, source: Checkpoint) -> None:
    with pytest.raises(InputError, match="neither an"):
        verify(tmp_path, source)
    with pytest.raises(InputError, match="no such"):
        verify(tmp_path / "absent", source)


def test_no_levels_at_all_is_not_a_pass(finished: Path, source: Checkpoint) -> None:
    with pytest.raises(CannotExecute, match="nothing was checked"):
        verify(finished, source, levels=[])


@pytest.mark.skipif(can_predict(), reason="Core ML is there on macOS")
def test_core_ml_is_asked_for_only_on_a_mac() -> None:
    assert isinstance(choose("auto"), TorchRuntime)
    with pytest.raises(InputError, match="only on macOS"):
        choose("coreml")


# ---- policy ----

GATE = '[[gate]]\nlevel = "conversion"\ncomponents = ["unet"]\nmetric = "snr_db"\n'


def test_another_policy_judges_the_same_results(good: Results, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f'schema = 1\nversion = "strict"\n{GATE}at_least = 200\nwhy = "a test"\n')
    policy = load_policy(file)
    check = next(c for c in good.checks if c.component == "unet" and c.metrics)
    assert check.metrics is not None
    judged = policy.judge("conversion", "unet", check.metrics)
    assert (judged.verdict, judged.gate) == ("fail", "snr_db >= 200")
    assert load_policy().judge("conversion", "unet", check.metrics).verdict == "pass"
    with pytest.raises(InputError, match="no gate"):
        policy.judge("conversion", "vae_decoder", check.metrics)


def test_an_error_three_times_that_of_pytorch_float16_fails() -> None:
    reference = np.ones(100)
    half, ours = compare(reference, reference + 1e-4), compare(reference, reference + 4e-4)
    judged = load_policy().judge("conversion", "unet", ours, half)
    assert judged.verdict == "fail"
    assert "fp16_error_ratio is 4" in judged.message
    assert load_policy().judge("conversion", "unet", ours).verdict == "pass"


@pytest.mark.parametrize(
    "text",
    [
        "schema = 2\n",
        'schema = 1\nversion = "1"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = 1\n',
        f'schema = 1\nversion = "1"\n{GATE}why = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = 1\nat_most = 2\nwhy = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_least = nan\nwhy = "x"\n',
        f'schema = 1\nversion = "1"\n{GATE}at_leats = 1\nwhy = "x"\n',
        'schema = 1\nversion = "1"\n'
        + GATE.replace("snr_db", "psnr")
        + 'at_least = 1\nwhy = "x"\n',
        "schema = ",
    ],
)
def test_a_policy_is_read_strictly(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError):
        load_policy(tmp_path / "policy.toml")


# ---- reports ----


def test_json_is_as_documented_and_repeatable(good: Results) -> None:
    document = json.loads(report.json_text(good))
    assert (document["schema"], document["verdict"], document["runtime"]) == (1, "pass", "torch")
    assert "Neural Engine" in document["scope"]
    check = next(c for c in document["checks"] if c["output"] == "noise_pred")
    assert check["case"] == "t=999 uncond"
    metrics = check["metrics"]
    assert {"snr_db", "nrmse", "cosine", "max_abs", "p99_abs", "finite"} <= metrics.keys()
    assert metrics["fp16_snr_db"] > 40
    assert check["gate"].startswith("snr_db >= 35")
    assert report.json_text(good) == report.json_text(good)


def test_junit_has_a_case_for_each_component_level_and_case(good: Results) -> None:
    root = ElementTree.fromstring(report.junit(good))
    names = {(c.get("classname"), c.get("name")) for c in root.iter("testcase")}
    assert ("conversion.unet", "t=999 cond") in names
    assert names == {(f"{c.level}.{c.component}", c.case) for c in good.checks}
    assert not list(root.iter("failure"))


def test_every_report_says_what_it_does_not_prove(artifact: Path, source: Checkpoint) -> None:
    from rich.console import Console

    shutil.rmtree(artifact / "Unet.mlpackage")
    results = verify(artifact, source, runtime="torch", components=["unet", "text_encoder"])
    console = Console(width=400, record=True, quiet=True)
    console.print(report.table(results))
    for text in (console.export_text(), report.markdown(results), report.junit(results)):
        assert "a particular Neural Engine may differ" in text
        assert "Unet.mlpackage is missing" in text
        assert "10·log10(Σref² / Σ(ref − out)²)" in text
