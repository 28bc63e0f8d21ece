"""The commands that hand models on: pack, lint, card, publish."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants

from release.source_card import MARK

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
