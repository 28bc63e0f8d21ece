"""A run's folder on the Hub: to the byte what its release would have put there, an archive at a
time; what is up is neither made nor sent again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.estimate import archive_bytes
from convert.plan.plan import Plan, make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from release.build import build_release, find_artifacts
from release.card.source_card import SourceCard
from release.pack.packable import NotVerified, make_archive
from release.pack.room import NoRoom
from release.publish import from_run
from release.publish.from_run import RunFolder, plan_run, publish_run, read_run
from release.publish.publish import LicenseForbids, Publication, publish
from release.publish.text import publication_text, wanted_repo
from tests.support.hub_server import HubServer

REPO = "owner/coreml-several"
RECIPE = """
name = "several"
source.path = "base"
matrix = { attention = ["split_einsum"], resolution = ["96x64", "64x96", "64x64"] }
release.license = "openrail++"
"""
NAMES = [f"several_split-einsum_16-bit_{size}" for size in ("96x64", "64x96", "64x64")]
CARD = SourceCard("# Base\n\nA base model.", {"license": "openrail++"})
SIZE = 40_000  # of parts: six or so for an archive


@pytest.fixture(scope="module")
def plan(shapes: dict[str, Path]) -> Plan:
    """Three artifacts of two small components."""
    checkpoint = open_checkpoint(shapes["base"])
    recipe = parse_recipe(RECIPE, where="test")
    return make_plan(recipe, checkpoint, components=["vae_decoder", "text_encoder"])


@pytest.fixture(scope="module")
def finished(
    plan: Plan, passing_report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a run leaves of the plan, all passed; with a licence text beside it."""
    from PIL import Image

    out = tmp_path_factory.mktemp("several") / "out"
    made = run(plan, Snapshot(plan.checkpoint.path, None, None, ()), out, jobs=1)
    image = "images/cccccccccccccccc.png"
    (out / "reports" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), (40, 90, 160)).save(out / "reports" / image)
    generation = {
        "case": "euler_a text-to-image 1", "kind": "text-to-image", "prompt": "a toy",
        "scheduler": "euler_a", "steps": 4, "guidance": 7.0, "images": {"candidate": image},
        "psnr_db": 41.2, "ssim": 0.99,
    }  # fmt: skip
    for result in made:
        name, fingerprint = (result.manifest[key] for key in ("artifact", "fingerprint"))
        told = {"artifact": name, "fingerprint": fingerprint, "generations": [generation]}
        (out / "reports" / f"{name}.json").write_text(json.dumps(passing_report | told))
    results = {"results": [{"artifact": result.path.name} for result in made]}
    (out / "reports" / "summary.json").write_text(json.dumps(results))
    (out.parent / "LICENSE.md").write_text("You may.\n")
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that the test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that takes uploads by LFS; Xet, which needs a service of its own, is switched off."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        monkeypatch.setenv("HF_TOKEN", server.uploads.token)
        yield server


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the artifacts whose archives are made during the test."""
    names: list[str] = []

    def noted(item: Any, *rest: Any) -> Any:
        names.append(item.name)
        return make_archive(item, *rest)

    monkeypatch.setattr(from_run, "make_archive", noted)
    return names


def read(out: Path, **options: Any) -> RunFolder:
    licenses = [out.parent / "LICENSE.md"] if (out.parent / "LICENSE.md").exists() else []
    return replace(read_run(out, **options), source=CARD, licenses=licenses)


def send(out: Path, hub: HubServer, **options: Any) -> Publication:
    return publish_run(read(out, **options), REPO, endpoint=hub.url)


def files(hub: HubServer, repo: str = REPO) -> dict[str, bytes]:
    return hub.commits[repo, hub.refs[repo, "main"]]


def packed(out: Path, hub: HubServer, folder: Path, split: int | None = None) -> dict[str, bytes]:
    """The repo after `pack` and `publish` of the release, which is made of all artifacts."""
    licenses = [out.parent / "LICENSE.md"] if (out.parent / "LICENSE.md").exists() else []
    build_release(
        find_artifacts(out),
        folder,
        reports=out / "reports",
        source=CARD,
        licenses=licenses,
        split=split,
    )
    publish(folder, "owner/packed", endpoint=hub.url)
    return files(hub, "owner/packed")


def archives(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.zip*") if path.is_file()]


@pytest.mark.parametrize("split", [None, SIZE])
def test_the_repo_is_that_of_a_packed_release_to_the_byte(
    finished: Path, hub: HubServer, tmp_path: Path, split: int | None
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    shutil.copy(finished.parent / "LICENSE.md", tmp_path)
    most = 0

    def count(_: int) -> None:
        nonlocal most
        most = max(most, len({path.name.partition(".zip")[0] for path in archives(out)}))

    hub.uploads.on_receipt = count
    done = send(out, hub, split=split)
    hub.uploads.on_receipt = None
    assert most == 1  # archive at a time
    assert archives(out) == []
    assert not list((out / ".cache" / "tmp").glob("*-*"))
    there = files(hub)
    assert {"LICENSE.md", "README.md", "SHA256SUMS", "manifest.json"} <= there.keys()
    assert "images/cccccccccccccccc.png" in there
    assert there == packed(out, hub, tmp_path / "release", split)
    order = [a["archive"] for a in json.loads(there["manifest.json"])["archives"]]
    assert order == [f"{name}.zip" for name in NAMES]  # the recipe's
    (commit,) = hub.uploads.commits[:1]
    assert commit["summary"].startswith(f"Core ML models: {len(done.uploads) - 5} archives")
    sums = dict(reversed(line.split("  ")) for line in there["SHA256SUMS"].decode().splitlines())
    for path, digest in sums.items():
        assert hashlib.sha256(there[path]).hexdigest() == digest


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_disk_that_holds_two_archives_will_do(
    finished: Path, hub: HubServer, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here, so a small disk was not tried")
    try:
        out = Path(shutil.copytree(finished, disk / "out"))
        largest = max(item.bytes for item in read(out).items)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - largest // 2))
        with pytest.raises(NoRoom, match=r"no space: .* for one archive at a time"):
            send(out, hub)
        with pytest.MonkeyPatch.context() as patch:  # where the prediction was too low
            patch.setattr(from_run, "_require_room", lambda *_: None)
            with pytest.raises(InputError, match="the disk is full"):
                send(out, hub)
        assert (hub.uploads.received, hub.uploads.created) == ([], [])
        filler.write_bytes(bytes(filler.stat().st_size - 3 * largest // 2))
        with pytest.raises(InputError, match="no space"):
            build_release(find_artifacts(out), disk / "release", reports=out / "reports")
        send(out, hub)
        assert files(hub) == packed(out, hub, tmp_path / "release")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_was_killed_sends_only_the_rest(
    out: Path, hub: HubServer, made: list[str], tmp_path: Path
) -> None:
    """Killed when two archives have arrived, before it is told of the second."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdxl_coreml", "publish", str(out), "--repo", REPO],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"},
        cwd=Path(from_run.__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    hub.uploads.on_receipt = lambda count: process.kill() if count == 2 else None
    assert process.wait(60) == -signal.SIGKILL
    hub.uploads.on_receipt = None
    assert (len(hub.uploads.received), hub.uploads.commits) == (2, [])
    assert len(archives(out)) == 1  # nobody was there to clean up
    done = send(out, hub)
    assert made == NAMES[2:]
    assert [u.path.rpartition("/")[2] for u in done.uploads if u.received] == [
        f"{name}.zip" for name in sorted(NAMES[:2], key=lambda name: name.rpartition("_")[2])
    ]
    assert len(hub.uploads.received) == len(set(hub.uploads.received)) == 4
    assert archives(out) == []
    assert not list((out / ".cache" / "tmp").glob("*-*"))
    assert files(hub) == packed(out, hub, tmp_path / "release")


def test_what_is_up_is_neither_made_nor_sent(out: Path, hub: HubServer, made: list[str]) -> None:
    first = send(out, hub)
    requests = len(hub.requests)
    assert send(out, hub).changes == ()
    assert plan_run(read(out), REPO, endpoint=hub.url).changes == ()
    assert {r.method for r in hub.requests[requests:]} == {"GET"}
    assert made == NAMES
    # The cache may be deleted: then they are made, and found to be there.
    shutil.rmtree(out / ".cache")
    found = plan_run(read(out), REPO, endpoint=hub.url)
    assert {u.change for u in found.uploads if u.path.endswith(".zip")} == {"unknown"}
    assert found.left == ()
    assert "? SHA256SUMS" in publication_text(found, dry_run=True, pull_request=False)
    received = list(hub.uploads.received)
    assert send(out, hub).changes == ()
    assert made == NAMES * 2
    assert hub.uploads.received == received
    assert len(hub.uploads.commits) == 1
    assert first.url


def test_a_changed_report_changes_its_archive_alone(
    out: Path, hub: HubServer, made: list[str]
) -> None:
    send(out, hub)
    file = out / "reports" / f"{NAMES[1]}.json"
    report = json.loads(file.read_text())
    report["checks"].append({**report["checks"][0], "case": "t=1 cond"})
    file.write_text(json.dumps(report))
    changed = send(out, hub).changes
    assert made == [*NAMES, NAMES[1]]
    assert [u.path for u in changed] == [
        "SHA256SUMS", "manifest.json", f"split-einsum/64x96/{NAMES[1]}.zip",
    ]  # fmt: skip


def test_a_dry_run_shows_the_plan_and_leaves_no_trace(
    out: Path, plan: Plan, hub: HubServer, tmp_path: Path
) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    shutil.rmtree(out / ".cache")
    before = state()
    found = plan_run(read(out), REPO, endpoint=hub.url)
    assert state() == before
    assert {r.method for r in hub.requests} == {"GET"}
    assert {u.path: u.change for u in found.uploads} == dict.fromkeys(
        [
            "README.md", "SHA256SUMS", "images/cccccccccccccccc.png", "manifest.json",
            *(f"split-einsum/{name.rpartition('_')[2]}/{name}.zip" for name in NAMES),
        ],
        "new",
    )  # fmt: skip
    text = publication_text(found, dry_run=True, pull_request=False)
    assert "new, yet to be made" in text
    assert "Would send 7 files, at most" in text
    # What is foretold of an archive is what it comes to, nearly.
    send(out, hub)
    for name, foretold in archive_bytes(plan).items():
        size = len(files(hub)[f"split-einsum/{name.rpartition('_')[2]}/{name}.zip"])
        assert 0.9 * size < foretold < 1.1 * size
        (item,) = (item for item in read(out).items if item.name == name)
        assert size < item.bytes


@pytest.mark.parametrize("split", [None, SIZE])
def test_an_upload_that_breaks_is_one_error_and_loses_nothing(
    out: Path,
    hub: HubServer,
    made: list[str],
    split: int | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.uploads.refuse_after = 1
    with pytest.raises(InputError, match="the Hub refused with status 403"):
        send(out, hub, split=split)
    assert not list((out / ".cache" / "tmp").glob("*-*"))
    assert archives(out) == []
    hub.uploads.refuse_after = None
    done = send(out, hub, split=split)
    again = NAMES[0] if split else NAMES[1]  # of which some is missing up there
    assert made == [*NAMES[: 1 if split else 2], again, *NAMES[1 if split else 2 :]]
    there = {hashlib.sha256(files(hub)[u.path]).hexdigest() for u in done.uploads}
    assert len(hub.uploads.received) == len(set(hub.uploads.received))
    assert set(hub.uploads.received) <= there
    assert "LFS files" not in capfd.readouterr().err  # huggingface_hub's own bars


def test_an_interrupt_leaves_no_archive(
    out: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def interrupted(*_: object, **__: object) -> None:
        assert len(archives(out)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "preupload_lfs_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send(out, hub)
    assert archives(out) == []
    assert not list((out / ".cache" / "tmp").glob("*-*"))


def test_only_what_passed_is_published(out: Path, hub: HubServer) -> None:
    file = out / "reports" / f"{NAMES[0]}.json"
    report = json.loads(file.read_text())
    file.write_text(json.dumps({**report, "verdict": "fail"}))
    with pytest.raises(NotVerified, match=r"not published, .*64 \(verdict: fail\)") as error:
        read(out)
    assert error.value.hint is not None
    assert "--passing" in error.value.hint
    found = read(out, only_passing=True)
    assert ([i.name for i in found.items], found.left) == (NAMES[1:], [NAMES[0]])
    file.write_text(json.dumps({**report, "code": {}}))
    with pytest.raises(NotVerified, match="another version's checks"):
        read(out)
    shutil.rmtree(out / "reports")
    with pytest.raises(NotVerified, match="was not verified"):
        read(out)
    assert hub.requests == []


def test_the_last_runs_recipe_is_the_one_that_is_published(out: Path) -> None:
    manifest = out / NAMES[2] / "manifest.json"
    values = json.loads(manifest.read_text())
    values["recipe"]["text"] += "# an older one\n"
    manifest.write_text(json.dumps(values))
    with pytest.raises(InputError, match="differ in their recipe"):
        read(out)  # the last run told of both
    summary = {"results": [{"artifact": NAMES[0]}]}
    (out / "reports" / "summary.json").write_text(json.dumps(summary))
    found = read(out)
    assert [item.name for item in found.items] == NAMES[:2]
    assert found.left == [NAMES[2]]


def test_a_licence_that_forbids_it_is_refused_before_anything_is_made(
    out: Path, hub: HubServer, made: list[str]
) -> None:
    found = read(out)
    text = found.items[0].manifest["recipe"]["text"].replace("openrail++", "cc-by-nd-4.0")
    items = [
        replace(item, manifest={**item.manifest, "recipe": {"text": text}}) for item in found.items
    ]
    with pytest.raises(LicenseForbids, match=r"not published: cc-by-nd-4.0"):
        publish_run(replace(found, items=items), REPO, endpoint=hub.url)
    assert (hub.requests, made) == ([], [])


def test_what_is_no_runs_folder_is_told(out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no release folder, and holds no artifact"):
        read_run(tmp_path / "none")
    with pytest.raises(InputError, match="no repo to publish to"):
        wanted_repo(out, None, read(out).recipe)
    assert [item.name for item in read(out / NAMES[1]).items] == [NAMES[1]]
