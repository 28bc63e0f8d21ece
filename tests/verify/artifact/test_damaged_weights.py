"""A weight file that is missing, short or none at all: told by whoever opens it, with its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.package.mlpackage import WEIGHTS
from release.compile.mlmodelc import compile_package
from release.lint.lint import lint_archive, lint_bundle
from release.lint.tree import FolderTree
from release.pack.archive import write_archive
from release.pack.pack import pack
from tests.support.packages import edit_model, edit_weights, failing, operations
from verify.artifact.inspect import inspect
from verify.bisect.report import bisect_artifact
from verify.mil.blob import RECORD
from verify.question import Question
from verify.run import verify
from verify.runtime.runtimes import TorchRuntime
from verify.sampling.pipeline import load_pipeline

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 12345\n"
)


def written(file: Path, content: bytes | None) -> None:
    file.unlink()  # others hold it by hard link
    if content is not None:
        file.write_bytes(content)


def last_record(data: bytes) -> int:
    """The place of the last blob's record; before each stand the data of the one before."""
    return data.rindex(b"\xef\xbe\xad\xde")


def without_last_byte(data: bytes) -> bytes:
    (record,) = np.frombuffer(data, RECORD, 1, last_record(data))
    return data[: int(record["offset"]) + int(record["size"]) - 1]


def with_field(field: str, value: int) -> Callable[[bytes], bytes]:
    """The last blob's record changed."""

    def change(data: bytes) -> bytes:
        at = last_record(data)
        record = np.frombuffer(data[at : at + RECORD.itemsize], RECORD).copy()
        record[field] = value
        return data[:at] + record.tobytes() + data[at + RECORD.itemsize :]

    return change


BROKEN: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "missing": (lambda data: None, "missing"),
    "pointer": (lambda data: POINTER, "is a Git LFS pointer"),
    "older pointer": (lambda data: b"version https://hawser.github.com/spec/v1\noid", "Git LFS"),
    "empty": (lambda data: b"", "not a weight file: only 0 bytes"),
    "half": (lambda data: data[: len(data) // 2], "no blob record|truncated"),
    "one byte short": (without_last_byte, "truncated"),
    "a page": (lambda data: b"<html>Not found</html>" * 99, "not a weight file: blob storage ver"),
    "no record": (with_field("sentinel", 1), "starts with 0x00000001"),
    "larger blob": (with_field("size", 1 << 40), "truncated"),
    "smaller blob": (with_field("size", 2), "has 2 bytes"),
    "another dtype": (with_field("dtype", 14), "holds int32"),
}


@pytest.fixture
def package(base_artifact: Path, tmp_path: Path) -> Path:
    source = base_artifact / "VAEDecoder.mlpackage"
    return Path(shutil.copytree(source, tmp_path / "VAEDecoder.mlpackage"))


@pytest.mark.parametrize("kind", BROKEN)
def test_compile_inspect_and_the_runtime_name_it(kind: str, package: Path, tmp_path: Path) -> None:
    change, problem = BROKEN[kind]
    file = package / WEIGHTS
    written(file, change(file.read_bytes()))
    out = tmp_path / "out"
    for read in (
        lambda: compile_package(package, out, engine="native"),
        lambda: inspect(package),
        lambda: TorchRuntime().load(package),
    ):
        with pytest.raises(InputError, match=problem) as error:
            read()
        assert error.value.where == str(file)
        assert "git lfs pull" in str(error.value.hint)
    assert not list(out.iterdir())


def test_a_program_that_points_between_blobs_is_not_compiled(package: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        for op in operations(model):
            if op.type == "const" and op.attributes["val"].HasField("blobFileValue"):
                op.attributes["val"].blobFileValue.offset += 64

    edit_model(package, change)
    with pytest.raises(InputError, match=r"weight\.bin: the blob record at offset \d+ starts with"):
        compile_package(package, tmp_path / "out", engine="native")


@pytest.mark.parametrize("kind", ["missing", "pointer", "half"])
def test_bisect_generate_and_pack_name_it(
    kind: str, artifact: Path, base: Checkpoint, tmp_path: Path
) -> None:
    file = artifact / "Unet.mlpackage" / WEIGHTS
    written(file, BROKEN[kind][0](file.read_bytes()))
    for read in (
        lambda: bisect_artifact(artifact, base, components=["unet"]),
        lambda: load_pipeline(artifact, runtime="torch"),
        lambda: pack([artifact], tmp_path / "release", allow_unverified=True),
    ):
        with pytest.raises(InputError) as error:
            read()
        assert error.value.where == str(file)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("kind", BROKEN)
def test_lint_tells_it_of_folders_and_archives(kind: str, bundle: Path, tmp_path: Path) -> None:
    change, problem = BROKEN[kind]
    file = bundle / "VAEDecoder.mlmodelc/weights/weight.bin"
    written(file, change(file.read_bytes()))
    archive = tmp_path / f"{bundle.name}.zip"
    write_archive(bundle, archive)
    for result in (
        lint_bundle(FolderTree(bundle), digests=False),
        lint_archive(archive, digests=False),
    ):
        (found,) = (f for f in result.findings if f.rule == "missing-weights")
        assert found.severity == "error"
        assert found.file == "VAEDecoder.mlmodelc/weights/weight.bin"
        assert any(said in found.problem for said in problem.split("|"))


@pytest.mark.parametrize("name", ["model.mil", "coremldata.bin"])
def test_lint_knows_pointers_of_other_files(name: str, bundle: Path) -> None:
    written(bundle / "Unet.mlmodelc" / name, POINTER)
    found = lint_bundle(FolderTree(bundle), digests=False).findings
    assert ("incomplete-model", f"Unet.mlmodelc/{name}") in {(f.rule, f.file) for f in found}
    assert any("is a Git LFS pointer" in f.problem for f in found)


def test_an_archive_that_is_a_pointer_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"a\.zip: is a Git LFS pointer"):
        lint_archive(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("package", "component", "tensor"),
    [
        ("Unet", "unet", "conv_in.bias"),
        ("VAEDecoder", "vae_decoder", "decoder.conv_in.bias"),
        ("TextEncoder", "text_encoder", "encoder.layers.0.mlp.fc1.bias"),
    ],
)
def test_verify_names_component_and_tensor_of_a_changed_weight(
    package: str, component: str, tensor: str, artifact: Path, base: Checkpoint
) -> None:
    """A bit that leaves the value finite: no other check of the structure sees it."""
    dtype = np.float32 if package.startswith("VAE") else np.float16
    value = base.component_tensors(component)[tensor].read(dtype)[:4].tobytes()

    def flip(data: np.ndarray) -> None:
        data[data.tobytes().index(value)] ^= 1

    edit_weights(artifact / f"{package}.mlpackage", flip)
    results = verify(artifact, base, Question(levels=["structure"]))
    assert failing(results) == {f"{component}/files"}
    (message,) = (check.message for check in results.failures)
    assert message.startswith(f"{package}.mlpackage/{WEIGHTS} has another SHA-256")
    assert message.endswith(f"; `{tensor}` is no longer the checkpoint's")


def test_verify_names_no_tensor_that_may_have_been_replaced_on_purpose(
    artifact: Path, base: Checkpoint
) -> None:
    value = base.component_tensors("unet")["conv_in.bias"].read(np.float16).tobytes()

    def replace(data: np.ndarray) -> None:
        start = data.tobytes().index(value)
        data[start : start + len(value)] ^= 1  # every value, none of them by much

    edit_weights(artifact / "Unet.mlpackage", replace)
    results = verify(artifact, base, Question(levels=["structure"]))
    (message,) = (check.message for check in results.failures)
    assert message.endswith("has another SHA-256 than the manifest says")


def test_verify_of_a_component_without_files_in_the_manifest_is_no_pass(
    artifact: Path, base: Checkpoint
) -> None:
    file = artifact / "manifest.json"
    manifest = json.loads(file.read_text())
    files = {k: v for k, v in manifest["files"].items() if not k.startswith("Unet.")}
    file.write_text(json.dumps({**manifest, "files": files}))
    assert failing(verify(artifact, base, Question(levels=["structure"]))) == {"unet/files"}
