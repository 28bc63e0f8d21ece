"""The commands that hand models on: pack, lint, card, publish."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from release.card.source_card import MARK
from tests.support.hub_server import HubServer
from verify.reference.recording import Denoising

Run = Callable[..., tuple[int, str, str]]
NAME = "base_split-einsum_16-bit_64x96"


@pytest.fixture
def out(verified: Path, tmp_path: Path) -> Path:
    """A copy of `verified` that the test may spoil."""
    return Path(shutil.copytree(verified, tmp_path / "out", copy_function=os.link))


@pytest.fixture
def release(base_release: Path, tmp_path: Path) -> Path:
    """A copy of `base_release` that the test may spoil."""
    return Path(shutil.copytree(base_release, tmp_path / "release"))


def test_pack_lint_and_card(command: Run, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text("---\nlicense: mit\n---\n# The source\n")
    (source / "LICENSE.md").write_text("You may.\n")
    code, text, err = command("pack", out, "--out", folder, "--source", source, "--json")
    assert code == 0, err
    (archive,) = json.loads(text)["archives"]
    assert (archive["archive"], archive["verdict"]) == (f"{NAME}.zip", "pass")
    assert archive["fresh"]
    assert "# The source" in (folder / "README.md").read_text()
    assert (folder / "LICENSE.md").read_text() == "You may.\n"
    code, text, _ = command("lint", folder)
    assert code == 0
    assert "✓ MochiDiffusion           SDXL, split_einsum, 64x96, image-to-image" in text
    assert text.endswith("0 errors\n")
    # Written again without the source: what was copied stays, and so does its licence.
    (folder / "README.md").write_text((folder / "README.md").read_text().replace("## Files", ""))
    code, text, _ = command("card", folder, "--reports", out / "reports")
    assert code == 0
    assert "1 images" in text
    card = (folder / "README.md").read_text()
    assert "## Files" in card
    assert "license: mit" in card
    assert card.partition(MARK)[2].strip() == "# The source"


def test_pack_refuses_what_was_not_verified(
    command: Run, base_artifact: Path, tmp_path: Path
) -> None:
    code, _, err = command("pack", base_artifact, "--out", tmp_path / "release")
    assert code == 1
    assert err.startswith("error: not packed, because verification did not pass")
    code, _, _ = command(
        "pack", base_artifact, "--out", tmp_path / "release", "--allow-unverified", "--quiet"
    )
    assert code == 0
    assert "**Not verified**" in (tmp_path / "release" / "README.md").read_text()


def test_lint_exits_with_1_and_explains(command: Run, bundle: Path) -> None:
    merges = bundle / "merges.txt"
    merges.write_text(merges.read_text().rstrip("\n"))
    code, text, _ = command("lint", bundle)
    assert code == 1
    assert "✗ error merges-newline: merges.txt: does not end in a newline" in text
    assert "End merges.txt with a newline." in text
    code, text, _ = command("lint", bundle, "--json", "--fast")
    document = json.loads(text)
    assert (code, document["errors"] > 0) == (1, True)
    (result,) = document["results"]
    assert {a["app"]: a["works"] for a in result["apps"]}["Guernika"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.uploads.token)
        yield server


def test_publish_shows_then_sends(command: Run, release: Path, hub: HubServer) -> None:
    arguments = ("publish", release, "--repo", "owner/coreml-base")
    code, text, err = command(*arguments, "--dry-run")
    assert code == 0, err
    assert f"+ split-einsum/64x96/{NAME}.zip" in text
    assert "Would send 5 files" in text
    assert hub.uploads.commits == []
    code, text, err = command(*arguments, "--json")
    assert code == 0, err
    assert len(json.loads(text)["files"]) == 5
    assert len(hub.uploads.commits) == 1
    assert hub.uploads.token not in text + err
    code, text, _ = command(*arguments)
    assert code == 0
    assert "nothing to send" in text


def test_publish_refuses_a_licence_that_forbids_it(
    command: Run, release: Path, hub: HubServer
) -> None:
    card = release / "README.md"
    card.write_text(card.read_text().replace("license: openrail++", "license: cc-by-nd-4.0"))
    for options in ([], ["--dry-run"]):
        code, _, err = command("publish", release, "--repo", "owner/x", *options)
        assert code == 1
        assert "not published: cc-by-nd-4.0 lets nobody pass on modified copies" in err
    assert hub.requests == []


GATED = """
name = "r"
source.path = "base"
matrix = {{ attention = ["original"], resolution = ["64x64"], bits = ["16", "int8"] }}
[verify]
levels = ["structure", "compression"]
gates = [{{ bits = "int8", component = "unet", min_snr_db = {least} }}]
"""


def test_a_run_that_fails_leaves_no_release_that_looks_valid(
    command: Run,
    shapes: Mapping[str, Path],
    tmp_path: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = Denoising.of
    monkeypatch.setattr(Denoising, "of", lambda asked: replace(of(asked), timesteps=[37]))
    recipe, out = tmp_path / "r.toml", tmp_path / "out"
    run = ("run", recipe, "--source", shapes["base"], "--out", out, "--jobs", 1)
    recipe.write_text(GATED.format(least=1))
    code, _, err = command(*run)
    assert code == 0, err
    both = {"r_original_16-bit_64x64.zip", "r_original_int8-bit_64x64.zip"}
    release = out / "release"
    assert {p.name for p in release.glob("*.zip")} == both

    recipe.write_text(GATED.format(least=99))
    code, text, err = command(*run)
    assert code == 1
    assert "int8-bit_64x64 · compression · unet" in text
    assert "it is marked stale, and `publish` refuses it" in err
    again = f"run {recipe} --source {shapes['base']} --out {out} --release-passing"
    assert f"This releases the 1 that passed: sdxl-coreml {again}" in err
    assert "r_original_int8-bit_64x64" in (release / "STALE.txt").read_text()
    assert {p.name for p in release.glob("*.zip")} == both  # nothing is lost
    for words in (("publish", release, "--repo", "a/b", "--dry-run"), ("card", release)):
        code, _, err = command(*words)
        assert code == 1
        assert "is stale: a later run did not pass" in err
    code, text, _ = command("lint", release)
    assert code == 1
    assert "error stale: STALE.txt" in text

    code, _, err = command(*run, "--release-passing")
    assert code == 1  # one of two still fails
    assert {p.name for p in release.glob("*.zip")} == {"r_original_16-bit_64x64.zip"}
    assert not (release / "STALE.txt").exists()
    code, text, _ = command("lint", release)
    assert code == 0, text
    code, _, err = command(*run, "--only", "*int8-bit*")  # all that is released has passed
    assert code == 1
    assert f"{release} is left as it is: all that it holds has passed" in err
    assert not (release / "STALE.txt").exists()

    other = tmp_path / "other"
    code, _, err = command("pack", out, "--out", other)
    assert code == 1
    code, text, err = command("pack", out, "--out", other, "--passing")
    assert code == 0
    assert "Left out, because they did not pass: r_original_int8-bit_64x64" in err
    assert {p.name for p in other.glob("*.zip")} == {"r_original_16-bit_64x64.zip"}
    code, _, err = command("pack", out / "r_original_int8-bit_64x64", "--out", other, "--passing")
    assert code == 1
    assert "none of 1 artifacts passed" in err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "toy", "--no-release", "--release-passing"],
        ["pack", ".", "--out", "release", "--passing", "--allow-unverified"],
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(
    command: Run, words: list[str]
) -> None:
    code, _, err = command(*words)
    assert code == 2
    assert "contradict each other" in err


def test_compile_says_what_makes_the_bundle(
    command: Run, base_artifact: Path, tmp_path: Path
) -> None:
    code, _, err = command("compile", base_artifact, "--out", tmp_path / "compiled")
    assert code == 0
    assert f"apps load the bundle that this makes: sdxl-coreml pack {base_artifact}" in err


ROOMY = """
name = "r"
source.path = "base"
matrix = { attention = ["original"], resolution = ["64x64"] }
verify.levels = ["structure"]
release = { repo = "owner/r", license = "mit" }
"""


def test_a_run_without_room_for_archives_ends_with_what_publishes_without(
    command: Run,
    shapes: Mapping[str, Path],
    tmp_path: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, out = tmp_path / "r.toml", tmp_path / "out"
    recipe.write_text(ROOMY)
    source = Path(shutil.copytree(shapes["base"], tmp_path / "source"))
    (source / "README.md").write_text("# The source\n")
    (source / "LICENSE").write_text("You may.\n")
    run = ("run", recipe, "--source", source, "--out", out, "--jobs", 1)
    code, text, err = command("plan", recipe, "--source", source)
    assert code == 0, err
    assert "The release's archives, which are copies, take about" in text
    assert "are free" in text
    code, text, _ = command("plan", recipe, "--source", source, "--json")
    foretold = json.loads(text)
    assert foretold["archive_bytes"] == foretold["artifacts"][0]["archive_bytes"] > 0

    with monkeypatch.context() as patch:
        patch.setattr("release.pack.room.free_at", lambda folder: foretold["archive_bytes"])
        code, text, err = command(*run, "--json")
    assert code == 0, err
    before, after = err.split("artifacts made")
    assert "A run goes on without archives" in before
    assert "because the disk has no room for its archives" in after
    document = json.loads(text)
    assert (document["verdict"], document["release"]) == ("pass", None)
    assert not (out / "release").exists()
    left = [1 << 60, 1000]  # it may also turn out at the end
    with monkeypatch.context() as patch:
        patch.setattr("release.pack.room.free_at", lambda folder: left.pop(0))
        code, _, err = command(*run)
    assert code == 0, err
    assert "A run goes on without" not in err
    assert "because the disk has no room for its archives" in err
    assert not (out / "release").exists()
    words = ["publish", str(out), "--repo", "owner/r", "--source", str(source)]
    assert document["publish"] == " ".join(["sdxl-coreml", *words])
    assert document["publish"] in after
    code, text, err = command(*words, "--dry-run", "--json")
    assert code == 0, err
    assert {f["change"] for f in json.loads(text)["files"]} == {"new"}
    code, text, err = command(*words)
    assert code == 0, err
    there = hub.commits["owner/r", hub.refs["owner/r", "main"]]
    assert "# The source" in there["README.md"].decode()
    assert there["LICENSE"] == b"You may.\n"

    # With room, a release; what is sent of it is there already, and has its source's card.
    code, _, err = command(*run)
    assert code == 0, err
    (archive,) = (out / "release").glob("*.zip")
    assert abs(archive.stat().st_size - foretold["archive_bytes"]) < 0.02 * archive.stat().st_size
    for folder in (out / "release", out):
        code, text, err = command("publish", folder)
        assert "nothing to send" in text, err
    code, _, err = command("publish", out / "release", "--passing")
    assert code == 2
    assert "--passing is of a run's folder, and this is a release" in err

    # Later the disk is too small for one that is not there yet: what is there becomes stale.
    recipe.write_text(ROOMY.replace('"64x64"', '"64x96"'))
    with monkeypatch.context() as patch:
        patch.setattr("release.pack.room.free_at", lambda folder: 1000)
        code, _, err = command(*run)
    assert code == 0
    assert "it is marked stale, and `publish` refuses it" in err
    assert "no room for its archives" in (out / "release" / "STALE.txt").read_text()
    code, text, err = command("publish", out, "--source", source, "--dry-run")
    assert code == 0, err
    assert "are of another recipe: r_original_16-bit_64x64" in err
    assert "original/64x96/r_original_16-bit_64x96.zip" in text


def test_the_card_of_a_runs_folder_copies_that_of_the_repo_it_was_made_from(
    command: Run, out: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    texts = {"README.md": b"---\nlicense: mit\n---\n# Theirs\n", "LICENSE.txt": b"You may.\n"}
    commit = hub.push("owner/base", {**texts, "unet/model.safetensors": b"much"})
    hub.push("owner/base", {"README.md": b"# Later\n"})
    file = out / NAME / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["source"] |= {"repo": "owner/base", "commit": commit}
    file.unlink()  # a hard link to the fixture's
    file.write_text(json.dumps(manifest))
    code, _, err = command("publish", out, "--repo", "owner/coreml-base")
    assert code == 0, err
    there = hub.commits["owner/coreml-base", hub.refs["owner/coreml-base", "main"]]
    assert there["README.md"].decode().partition(MARK)[2].strip() == "# Theirs"
    assert there["LICENSE.txt"] == b"You may.\n"
    assert set(hub.fetched()) == set(texts)
