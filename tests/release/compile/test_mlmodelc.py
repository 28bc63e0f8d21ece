"""Compiled models made here: complete or absent, read back as the same program, run the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert import __version__
from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import CannotExecute, InputError
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import MODEL, WEIGHTS
from release.compile import xcode
from release.compile.mlmodelc import choose_engine, compile_package, find_packages
from release.compile.op_versions import DEFINED
from sdxl_coreml import app
from tests.support import programs
from tests.support.checkpoints import write_component
from tests.support.packages import edit_model, failing, operations
from verify.artifact.inspect import inspect
from verify.mil import Program, histogram, load_program
from verify.question import Evidence, Question
from verify.reference.recording import Recording
from verify.run import verify
from verify.runtime.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    "model.mil",
    "coremldata.bin",
    "metadata.json",
    "analytics/coremldata.bin",
    "weights/weight.bin",
}


def native(package: Path, out: Path) -> Path:
    return compile_package(package, out, engine="native")


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def small(shapes: Mapping[str, Path]) -> Checkpoint:
    """The checkpoint with the smallest UNet, attention in all of it."""
    return open_checkpoint(shapes["attention_at_every_level"])


@pytest.fixture(scope="module")
def package(base_artifact: Path) -> Path:
    return base_artifact / "TextEncoder2.mlpackage"


# ---- the same program, whatever it is made of ----

SHARED = ("16", "8", "6", "4", "int8")
MODERN = (*SHARED, "3", "int4")


ATTENTIONS = ("original", "split_einsum", "split_einsum_v2")
ENCODERS = ("text_encoder", "text_encoder_2")


def kinds() -> Iterator[Any]:
    """Component, attention, deployment target and bits: all that the converter makes.

    The usual run takes each width once for each target, attention and encoder in turn.
    """
    for target, widths in (("iOS17", SHARED), ("iOS18", MODERN)):
        found = [((c, "original", target, "16"), True) for c in ("vae_decoder", "vae_encoder")]
        for turn, bits in enumerate(widths):
            for i, component in enumerate(ENCODERS):
                found.append(((component, "original", target, bits), turn % 2 == i))
            for i, attention in enumerate(ATTENTIONS):
                found.append((("unet", attention, target, bits), (turn + len(widths)) % 3 == i))
        for kind, is_usual in found:
            marks = () if is_usual else (pytest.mark.slow,)
            yield pytest.param(kind, id=" ".join(kind), marks=marks)


@pytest.mark.parametrize("kind", kinds())
def test_it_reads_back_as_the_same_program(
    kind: tuple[str, str, Any, str],
    small: Checkpoint,
    tmp_path: Path,
    same_program: Callable[[Program, Program], None],
) -> None:
    component, attention, target, bits = kind
    path = write_component(
        tmp_path / "A.mlpackage",
        small,
        component,
        attention=attention,
        deployment=target,
        bits=bits,
        size=(64, 64),
    )
    compiled = native(path, tmp_path)
    original, back = load_program(path), load_program(compiled)
    same_program(back, original)
    assert_same_outputs(back, original)


def assert_same_outputs(one: Program, other: Program) -> None:
    """To the bit: the same operations, in the same shapes, on weights at the same offsets."""
    generator = np.random.default_rng(0)
    inputs = {
        f.name: torch.from_numpy(
            generator.integers(0, 40, f.shape).astype(np.float32)
            if f.name in ("input_ids", "timestep", "time_ids")
            else generator.standard_normal(f.shape, np.float32)
        )
        for f in one.inputs
    }
    left, right = Evaluator(one).run(inputs), Evaluator(other).run(inputs)
    assert left.keys() == right.keys() == {f.name for f in one.outputs}
    for name, value in left.items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, right[name])


# ---- the folder ----


def test_it_is_complete_and_its_weights_are_the_packages(package: Path, tmp_path: Path) -> None:
    compiled = native(package, tmp_path / "new" / "folder")
    assert compiled == tmp_path / "new" / "folder" / "TextEncoder2.mlmodelc"
    assert files(compiled).keys() == FILES
    assert (compiled / "weights/weight.bin").samefile(package / WEIGHTS)
    assert [p.name for p in compiled.parent.iterdir()] == ["TextEncoder2.mlmodelc"]
    head = (compiled / "model.mil").read_text("utf-8")[:300]
    assert (
        f'{{"coremlc-component-MIL", "sdxl-coreml"}}, {{"coremlc-version", "{__version__}"}}'
        in head
    )


def test_the_same_package_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    one, two = native(package, tmp_path / "one"), native(package, tmp_path / "two")
    assert files(one) == files(two)


def test_a_program_without_weights_has_no_folder_for_them(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(2,))], opset_version=ct.target.iOS16)
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    path = tmp_path / "my relu-1.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS16).save(str(path))
    compiled = native(path, tmp_path)
    assert files(compiled).keys() == FILES - {"weights/weight.bin"}
    (facts,) = json.loads((compiled / "metadata.json").read_text("utf-8"))
    assert facts["generatedClassName"] == "my_relu_1"
    assert "storagePrecision" not in facts
    output = load_program(path).outputs[0].name
    found = Evaluator(compiled).run({"x": np.array([-1, 2], np.float32)})[output]
    assert found.tolist() == [0, 2]


def test_ours_and_the_same_packages_are_replaced_and_nothing_else_is(
    package: Path, tmp_path: Path
) -> None:
    compiled = native(package, tmp_path)
    other = Path(shutil.copytree(package, tmp_path / "TextEncoder2.mlpackage"))
    edit_model(other, lambda m: setattr(m.description.metadata, "author", "someone else"))
    assert load_program(native(other, tmp_path)).author == "someone else"  # ours, of another
    text = (compiled / "model.mil").read_text("utf-8").replace('"sdxl-coreml"', '"3520.4.1"')
    (compiled / "model.mil").write_text(text, "utf-8")
    native(other, tmp_path)  # as Xcode would have made it, of the same package
    (compiled / "model.mil").write_text(text, "utf-8")
    before = files(compiled)
    with pytest.raises(InputError, match="made neither by sdxl-coreml nor of this package"):
        native(package, tmp_path)
    assert files(compiled) == before
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / compiled.name).write_text("a file")
    with pytest.raises(InputError, match="exists already"):
        native(package, tmp_path / "else")


def test_what_fails_leaves_nothing_behind(package: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(package, tmp_path / "a.mlpackage"))
    (broken / WEIGHTS).unlink()
    with pytest.raises(InputError, match="the weight file is missing"):
        native(broken, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    outside = Path(shutil.copytree(package, tmp_path / "b.mlpackage"))

    def point_outside(model: Any) -> None:
        for op in operations(model):
            if op.type == "const" and op.attributes["val"].HasField("blobFileValue"):
                op.attributes["val"].blobFileValue.fileName = "@model_path/../../secret"

    edit_model(outside, point_outside)
    with pytest.raises(CannotExecute, match=r"b\.mlpackage: the program points outside"):
        native(outside, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot read or write"):
        native(package, tmp_path / "file" / "out")


def test_what_is_no_ml_program_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such package"):
        native(tmp_path / "none.mlpackage", tmp_path)
    broken = Path(shutil.copytree(package, tmp_path / "a.mlpackage"))
    edit_model(broken, lambda m: m.neuralNetwork.SetInParent())
    with pytest.raises(CannotExecute, match="this model is neuralNetwork"):
        native(broken, tmp_path / "out")
    (broken / MODEL).write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a Core ML model"):
        native(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (programs.stateful, "has the state 'cache', whose text is not known"),
        (programs.looping, "cond '.*' holds blocks of its own, whose text is not known"),
    ],
)
def test_what_our_compiler_cannot_write_is_refused_by_name(
    make: Callable[[Path], Path], problem: str, tmp_path: Path
) -> None:
    made = make(tmp_path / "x.mlpackage")
    with pytest.raises(CannotExecute, match=rf"x\.mlpackage: {problem}") as error:
        native(made, tmp_path / "out")
    assert "--engine xcode" in str(error.value.hint)
    assert not list((tmp_path / "out").iterdir())


# ---- reading back what is broken ----


def test_broken_compiled_models_are_named(package: Path, tmp_path: Path) -> None:
    compiled = native(package, tmp_path)
    with pytest.raises(InputError, match="no such compiled model"):
        load_program(tmp_path / "none.mlmodelc")
    whole = (compiled / "coremldata.bin").read_bytes()
    for content in (whole[:100], whole[:10]):
        (compiled / "coremldata.bin").write_bytes(content)
        with pytest.raises(CannotExecute, match=r"coremldata\.bin.*\n.*git lfs pull"):
            load_program(compiled)
    for name in ("coremldata.bin", "model.mil"):
        before = (compiled / name).read_bytes()
        (compiled / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(InputError, match=f"{name}: is a Git LFS pointer"):
            load_program(compiled)
        (compiled / name).write_bytes(before)
    (compiled / "coremldata.bin").unlink()
    with pytest.raises(CannotExecute, match=r"no coremldata\.bin"):
        load_program(compiled)
    (compiled / "coremldata.bin").write_bytes(whole)
    mil = (compiled / "model.mil").read_text("utf-8")
    (compiled / "model.mil").write_text(mil.replace("<ios17>", "<ios99>"), "utf-8")
    with pytest.raises(CannotExecute, match="opset 'ios99' is not known"):
        load_program(compiled)
    (compiled / "model.mil").write_text(mil[:5000], "utf-8")
    with pytest.raises(CannotExecute, match=r"model\.mil: line"):
        load_program(compiled)


def test_every_operation_that_we_make_has_a_known_version(base_artifact: Path) -> None:
    made = {op for path in find_packages(base_artifact) for op in histogram(load_program(path))}
    assert {"conv", "einsum", "softmax", "gather", "linear"} <= made
    assert made <= DEFINED.keys()


# ---- inspect, verify, the command ----


@pytest.fixture(scope="module")
def compiled_artifact(base_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact's packages, compiled into a folder of their own."""
    out = tmp_path_factory.mktemp("compiled") / base_artifact.name
    for path in find_packages(base_artifact):
        native(path, out)
    return out


def test_inspect_sees_the_same_in_both(base_artifact: Path, compiled_artifact: Path) -> None:
    packages, compiled = inspect(base_artifact).models, inspect(compiled_artifact).models
    assert len(compiled) == len(packages) == 5
    for one, other in zip(packages, compiled, strict=True):
        left, right = one.to_json(), other.to_json()
        assert other.file == one.file.replace(".mlpackage", ".mlmodelc")
        for facts in (left, right):
            for key in ("file", "files", "bytes"):
                del facts[key]
        assert left == right


def test_verify_takes_one_and_finds_the_same(
    base: Checkpoint, base_artifact: Path, compiled_artifact: Path, recording: Recording
) -> None:
    results = [
        verify(folder / name, Evidence(base, recording=recording), Question(runtime="torch"))
        for folder, name in (
            (base_artifact, "TextEncoder2.mlpackage"),
            (compiled_artifact, "TextEncoder2.mlmodelc"),
        )
    ]
    assert not failing(results[1])
    assert [c.metrics for c in results[0].checks] == [c.metrics for c in results[1].checks]


def test_verify_takes_a_folder_of_them(base: Checkpoint, compiled_artifact: Path) -> None:
    results = verify(compiled_artifact, base, Question(runtime="torch", levels=("structure",)))
    # There is no manifest, and there are no tokenizer files, in a folder of models alone.
    assert failing(results) == {
        "artifact/manifest",
        "artifact/components",
        "artifact/tokenizer",
    }


@pytest.fixture
def command(monkeypatch: Any, capfd: Any) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdxl-coreml", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            app.main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def test_the_command_compiles_every_package_of_an_artifact(
    command: Callable[..., tuple[int, str, str]], base_artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, _ = command("compile", base_artifact, "--out", out, "--engine", "native", "--json")
    document = json.loads(said)
    assert code == 0
    assert document["engine"] == "native"
    assert {Path(m["path"]).name for m in document["models"]} == {p.name for p in out.iterdir()}
    assert len(document["models"]) == 5
    one = document["models"][0]
    assert one["bytes"] == sum(len(data) for data in files(Path(one["path"])).values())
    code, said, heard = command("compile", base_artifact / "Unet.mlpackage", "--out", out, "-q")
    assert (code, heard) == (0, "")
    assert said.startswith(f"{out / 'Unet.mlmodelc'}: ")


def test_the_command_explains_what_it_cannot_do(
    command: Callable[..., tuple[int, str, str]], package: Path, tmp_path: Path
) -> None:
    code, _, said = command("compile", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "neither an .mlpackage nor a folder that holds some" in said
    code, _, said = command("compile", package, "--out", tmp_path / "out", "--engine", "natve")
    assert code == 2
    assert "Did you mean `native`?" in said
    code, _, said = command("compile", tmp_path / "none", "--out", tmp_path / "out")
    assert code == 2
    assert "no such package" in said


# ---- Xcode ----


def test_xcode_is_the_default_where_it_is(monkeypatch: Any) -> None:
    monkeypatch.setattr(xcode, "is_available", lambda: True)
    assert [choose_engine(e) for e in ("auto", "xcode", "native")] == ["xcode", "xcode", "native"]
    monkeypatch.setattr(xcode, "is_available", lambda: False)
    assert [choose_engine(e) for e in ("auto", "native")] == ["native", "native"]
    with pytest.raises(CannotExecute, match="not installed"):
        choose_engine("xcode")


def test_xcodes_compiler_is_asked_and_quoted(
    monkeypatch: Any, package: Path, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def compiler(command: list[str], **_: Any) -> Any:
        asked.append(command)
        (Path(command[-1]) / "TextEncoder2.mlmodelc").mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    def failing_compiler(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "error: it does not like it\n")

    monkeypatch.setattr(xcode, "is_available", lambda: True)
    monkeypatch.setattr(xcode.subprocess, "run", compiler)
    compiled = compile_package(package, tmp_path)
    assert asked[0][:4] == ["xcrun", "coremlcompiler", "compile", str(package)]
    assert list(tmp_path.iterdir()) == [compiled]
    monkeypatch.setattr(xcode.subprocess, "run", failing_compiler)
    with pytest.raises(CannotExecute, match="coremlcompiler failed: error: it does not like it"):
        compile_package(package, tmp_path / "out")


@pytest.mark.macos
@pytest.mark.skipif(not xcode.is_available(), reason="not compared: Xcode is not installed here")
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("bits", ["16", "6", "int8"])
def test_xcode_makes_the_same(target: Any, bits: str, base: Checkpoint, tmp_path: Path) -> None:
    package = write_component(
        tmp_path / "Unet.mlpackage",
        base,
        "unet",
        attention="split_einsum",
        deployment=target,
        bits=bits,
    )
    ours = native(package, tmp_path / "ours")
    theirs = compile_package(package, tmp_path / "theirs", engine="xcode")
    assert files(ours).keys() == files(theirs).keys()

    def lines(folder: Path) -> list[str]:  # the second is the compiler's on itself
        text = (folder / "model.mil").read_text("utf-8").split("\n")
        return [text[0], *text[2:]]

    assert lines(ours) == lines(theirs)
    assert json.loads((ours / "metadata.json").read_text("utf-8")) == json.loads(
        (theirs / "metadata.json").read_text("utf-8")
    )
    for name in ("coremldata.bin", "analytics/coremldata.bin", "weights/weight.bin"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
