"""Lint: what each app concludes from a bundle, and every way to break one explained."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.errors import InputError
from release.lint.app_view import AppView
from release.lint.apps import APPLE, DIFFUSERS, GUERNIKA, MOCHI
from release.lint.lint import Lint, lint, lint_archive, lint_bundle
from release.lint.rules import Finding
from release.lint.tree import FolderTree
from release.pack.archive import write_archive
from release.pack.bundle import make_bundle


def metadata(bundle: Path, model: str, change: Callable[[Any], Any]) -> None:
    """Rewrite a compiled model's metadata.json: `change` edits it or returns another value."""
    file = bundle / f"{model}.mlmodelc" / "metadata.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def program(bundle: Path, model: str, old: str, new: str) -> None:
    file = bundle / f"{model}.mlmodelc" / "model.mil"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def feature(value: Any, key: str, name: str) -> Any:
    return next(f for f in value[0][key] if f["name"] == name)


def found(result: Lint, rule: str) -> Finding:
    """The finding of that rule; there must be one."""
    findings = [f for f in result.findings if f.rule == rule]
    assert findings, [(f.rule, f.file, f.problem) for f in result.findings]
    return findings[0]


def view(result: Lint, app: str) -> AppView:
    return next(r for r in result.views if r.app == app)


def spoilt(bundle: Path) -> Lint:
    return lint_bundle(FolderTree(bundle))


def test_every_app_reads_our_bundle_right(base_bundle: Path) -> None:
    (result,) = lint(base_bundle)
    assert result.findings == ()
    for app in (APPLE, MOCHI, GUERNIKA, DIFFUSERS):
        one = view(result, app)
        assert one.works, one
        assert (one.is_sdxl, one.size, one.image_to_image) == (True, "64x96", True)
    assert view(result, MOCHI).attention == "split_einsum"
    assert view(result, GUERNIKA).attention == "split_einsum"


def test_an_artifact_is_judged_as_the_bundle_it_would_make(base_artifact: Path) -> None:
    before = sorted(base_artifact.parent.iterdir())
    (result,) = lint(base_artifact)
    assert [f.rule for f in result.findings] == ["unverified", "artifact"]
    assert all(r.works for r in result.views)
    assert sorted(base_artifact.parent.iterdir()) == before


def test_apples_form_ends_guernika_and_only_guernika(base_artifact: Path, tmp_path: Path) -> None:
    """What `release.pack.aliases` is for: the packages compiled as they are."""
    from release.compile.mlmodelc import compile_package

    bundle = tmp_path / base_artifact.name
    for package in base_artifact.glob("*.mlpackage"):
        compile_package(package, bundle)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(base_artifact / name, bundle)
    result = spoilt(bundle)
    assert [(f.severity, f.rule) for f in result.findings] == [
        ("warning", "no-manifest"),
        ("warning", "guernika-names"),
    ]
    finding = found(result, "guernika-names")
    assert (finding.apps, finding.effect) == ((GUERNIKA,), "the app ends when it lists its models")
    assert all(r.works for r in result.views if r.app != GUERNIKA)


def drop_newline(bundle: Path) -> None:
    file = bundle / "merges.txt"
    file.write_text(file.read_text().rstrip("\n"))


def nest(bundle: Path) -> None:
    inner = bundle / "compiled"
    names = list(bundle.iterdir())
    inner.mkdir()
    for path in names:
        path.rename(inner / path.name)


def rename_model(bundle: Path) -> None:
    (bundle / "Unet.mlmodelc").rename(bundle / "UNet.mlmodelc")


def remove_encoder(bundle: Path) -> None:
    shutil.rmtree(bundle / "VAEEncoder.mlmodelc")


def remove_text_encoder(bundle: Path) -> None:
    shutil.rmtree(bundle / "TextEncoder.mlmodelc")


def second_output(bundle: Path) -> None:
    metadata(bundle, "Unet", lambda v: v[0]["outputSchema"].append(
        {**v[0]["outputSchema"][0], "name": "noise_pred_2"}))  # fmt: skip


def number_in_schema(bundle: Path) -> None:
    metadata(bundle, "Unet", lambda v: v[0]["inputSchema"][0].update(isOptional=0))


def two_entries(bundle: Path) -> None:
    metadata(bundle, "Unet", lambda v: v * 2)


def no_array(bundle: Path) -> None:
    metadata(bundle, "Unet", lambda v: v[0])


def not_original(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "attention": "original"}))


def no_einsum(bundle: Path) -> None:
    def change(value: Any) -> None:
        del value[0]["mlProgramOperationTypeHistogram"]["Ios16.einsum"]

    metadata(bundle, "Unet", change)


def one_chunk(bundle: Path) -> None:
    (bundle / "Unet.mlmodelc").rename(bundle / "UnetChunk1.mlmodelc")


def other_encoder_size(bundle: Path) -> None:
    def change(value: Any) -> None:
        feature(value, "inputSchema", "z")["shape"] = "[1, 3, 128, 128]"

    metadata(bundle, "VAEEncoder", change)


def other_dtype(bundle: Path) -> None:
    def change(value: Any) -> None:
        feature(value, "inputSchema", "sample")["dataType"] = "Float32"

    metadata(bundle, "Unet", change)


def one_batch(bundle: Path) -> None:
    def change(value: Any) -> None:
        feature(value, "inputSchema", "timestep")["shape"] = "[1]"

    metadata(bundle, "Unet", change)


def other_tokenizer(bundle: Path) -> None:
    file = bundle / "merges.txt"
    file.write_text(file.read_text() + "q x\nqx z</w>\n")


def not_compiled(bundle: Path) -> None:
    (bundle / "Unet.mlmodelc").rename(bundle / "Unet.mlpackage")


def no_weights(bundle: Path) -> None:
    (bundle / "Unet.mlmodelc" / "weights" / "weight.bin").unlink()


def short_weights(bundle: Path) -> None:
    file = bundle / "Unet.mlmodelc" / "weights" / "weight.bin"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])


def other_weights(bundle: Path) -> None:
    file = bundle / "VAEDecoder.mlmodelc" / "weights" / "weight.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)


def no_vocab(bundle: Path) -> None:
    (bundle / "vocab.json").unlink()


def untrue_metadata(bundle: Path) -> None:
    program(bundle, "Unet", "= einsum(", "= matmul(")


def with_a_state(bundle: Path) -> None:
    start = "func main<ios17>("
    program(bundle, "Unet", start, f"{start}state<tensor<fp16, [2]>> cache, ")


def failed(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "verdict": "fail"}))


SWIFT = (APPLE, MOCHI, DIFFUSERS)
# What was done to the bundle, the rule that tells, whom it concerns (() is all), what happens.
BROKEN: list[tuple[Callable[[Path], None], str, tuple[str, ...], str]] = [
    (drop_newline, "merges-newline", SWIFT, "the last merge, `"),
    (nest, "nested-folder", (), "finds none"),
    (rename_model, "wrong-name", (), "not found"),
    (remove_encoder, "no-encoder", (), "no image-to-image; MochiDiffusion does not know the size"),
    (remove_text_encoder, "missing-model", SWIFT, "every image fails"),
    (second_output, "several-outputs", SWIFT, "the first it finds, in no certain order"),
    (number_in_schema, "metadata", (MOCHI,), "taken for a Stable Diffusion 1.5 model"),
    (two_entries, "metadata", (MOCHI,), "not listed"),
    (no_array, "metadata", (MOCHI, GUERNIKA), "not listed"),
    (not_original, "einsum-in-original", (MOCHI, GUERNIKA), "put on the Neural Engine"),
    (no_einsum, "no-einsum", (MOCHI, GUERNIKA), "never put on the Neural Engine"),
    (one_chunk, "one-chunk", (), "loading the model fails"),
    (other_encoder_size, "sizes-disagree", (), "fails"),
    (other_dtype, "dtype", (), "do not fit"),
    (one_batch, "shape", (), "do not fit"),
    (other_tokenizer, "tokenizers-differ", (), "ignore the prompt"),
    (not_compiled, "not-compiled", (), "not found"),
    (no_weights, "missing-weights", (), "refuses to load"),
    (short_weights, "missing-weights", (), "refuses to load"),
    (other_weights, "digest", (), "not what was verified"),
    (no_vocab, "tokenizer", SWIFT, "the app ends"),
    (untrue_metadata, "metadata-untrue", (), "misled"),
    (with_a_state, "stateful", (), "give models no states"),
    (failed, "unverified", (), "may be wrong"),
]


@pytest.mark.parametrize(
    ("spoil", "rule", "apps", "says"), BROKEN, ids=[row[0].__name__ for row in BROKEN]
)
def test_broken_bundles_are_explained(
    bundle: Path, spoil: Callable[[Path], None], rule: str, apps: tuple[str, ...], says: str
) -> None:
    spoil(bundle)
    result = spoilt(bundle)
    finding = found(result, rule)
    assert set(finding.apps) == set(apps)
    assert says in finding.effect
    assert finding.file
    assert finding.problem
    assert finding.remedy.endswith(".")
    assert finding.severity == ("warning" if rule in ("no-encoder", "unverified") else "error")


def test_what_mochi_makes_of_a_schema_that_is_not_all_strings(bundle: Path) -> None:
    """Source wins over the summary: the model is listed, but as Stable Diffusion 1.5."""
    number_in_schema(bundle)
    mochi = view(spoilt(bundle), MOCHI)
    assert (mochi.listed, mochi.is_sdxl, mochi.works) == (True, False, False)
    assert view(spoilt(bundle), GUERNIKA).works  # it decodes only the keys it uses


def test_without_a_vae_encoder_mochi_knows_no_size(bundle: Path) -> None:
    remove_encoder(bundle)
    result = spoilt(bundle)
    assert (view(result, MOCHI).size, view(result, MOCHI).image_to_image) == (None, False)
    assert view(result, GUERNIKA).size == "64x96"
    assert not view(result, APPLE).image_to_image
    assert view(result, APPLE).works


def test_another_folder_name_is_told(bundle: Path) -> None:
    other = bundle.with_name("animagine")
    bundle.rename(other)
    finding = found(spoilt(other), "folder-name")
    assert finding.problem == f"is called {bundle.name} in its manifest"


def test_a_name_that_promises_another_variant_is_told_without_a_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    other = bundle.with_name("animagine-xl_original_6-bit_64x96")
    bundle.rename(other)
    assert found(spoilt(other), "einsum-in-original").apps == (MOCHI, GUERNIKA)


def test_archives_are_read_without_unpacking(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"{bundle.name}.zip"
    write_archive(bundle, archive)
    result = lint_archive(archive)
    assert result.findings == ()
    assert all(r.works and r.size == "64x96" for r in result.views)


def test_an_archive_under_another_name_is_not_found_by_its_apps(
    bundle: Path, tmp_path: Path
) -> None:
    archive = tmp_path / f"{bundle.name}.zip"
    write_archive(bundle, archive)
    finding = found(lint_archive(archive.rename(tmp_path / "other.zip")), "archive-folder")
    assert finding.apps == (DIFFUSERS,)
    assert finding.problem == f"its top level is {bundle.name}, not the one folder other"


def test_an_archive_of_loose_files_is_told(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"{bundle.name}.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in bundle.rglob("*"):
            out.write(path, path.relative_to(bundle))
    assert found(lint_archive(archive), "archive-folder").severity == "error"


def test_a_damaged_archive_is_told(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"{bundle.name}.zip"
    write_archive(bundle, archive)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert found(lint_archive(archive), "digest")
    archive.write_bytes(data[:100])
    with pytest.raises(InputError, match="is no ZIP archive"):
        lint_archive(archive)


def test_a_bundle_verifies_as_its_artifact_does(
    base: Any, base_bundle: Path, recording: Any
) -> None:
    from verify.question import Evidence, Question
    from verify.run import verify

    results = verify(base_bundle, Evidence(base, recording=recording), Question(runtime="torch"))
    assert results.verdict == "pass", results.failures
    outputs = {(c.component, c.output) for c in results.checks if c.level == "conversion"}
    assert ("text_encoder", "last_hidden_state") in outputs
    assert ("vae_encoder", "latent") in outputs


def test_guernikas_names_change_no_number(
    base_artifact: Path, base_bundle: Path, recording: Any
) -> None:
    """The extra names are the same values, and the models give what they gave before."""
    import numpy as np

    from verify.runtime.runtimes import choose

    runtime = choose("torch", device="cpu")
    for component, file in (("text_encoder", "TextEncoder"), ("vae_encoder", "VAEEncoder")):
        case = recording.cases[component][0]
        expected = runtime.load(base_artifact / f"{file}.mlpackage")(case.inputs)
        inputs = {("z" if name == "x" else name): value for name, value in case.inputs.items()}
        outputs = runtime.load(base_bundle / f"{file}.mlmodelc")(inputs)
        for name, value in expected.items():
            assert np.array_equal(outputs[name], value)
        if component == "text_encoder":
            assert np.array_equal(outputs["last_hidden_state"], outputs["hidden_embeds"])


def test_a_bundle_is_refused_for_an_artifact_that_has_changed(
    artifact: Path, tmp_path: Path
) -> None:
    file = artifact / "Unet.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(InputError, match="has changed since it was made"):
        make_bundle(artifact, tmp_path / "bundle")
