"""Publishing: only what changed, in one commit, resumable, and nothing that a licence forbids."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from convert.errors import InputError, UserError
from release.publish.publish import LicenseForbids, Publication, plan_publication, publish
from release.publish.text import publication_text, wanted_repo
from tests.support.hub_server import HubServer

REPO = "owner/coreml-base"
NAME = "base_split-einsum_16-bit_64x96"
ARCHIVE = f"split-einsum/64x96/{NAME}.zip"
ALL = ["README.md", "SHA256SUMS", f"images/{'b' * 16}.png", "manifest.json", ARCHIVE]
TOKEN = "hf_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that takes uploads by LFS; Xet, which needs a service of its own, is switched off."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as server:
        yield server


@pytest.fixture
def release(base_release: Path, tmp_path: Path) -> Path:
    """A copy of `base_release` that the test may spoil."""
    return Path(shutil.copytree(base_release, tmp_path / "release"))


def send(release: Path, hub: HubServer, **options: bool) -> Publication:
    return publish(release, REPO, endpoint=hub.url, **options)


def files(hub: HubServer) -> dict[str, bytes]:
    return hub.commits[REPO, hub.refs[REPO, "main"]]


def changed(found: Publication) -> dict[str, str]:
    return {u.path: u.change for u in found.uploads}


def test_a_dry_run_tells_what_would_be_sent_and_sends_nothing(
    release: Path, hub: HubServer
) -> None:
    found = plan_publication(release, REPO, endpoint=hub.url)
    assert found.creates_repo
    assert changed(found) == dict.fromkeys(sorted(ALL), "new")
    assert {r.method for r in hub.requests} == {"GET"}
    text = publication_text(found, dry_run=True, pull_request=False)
    assert f"+ {ARCHIVE}" in text
    assert "which would be created" in text
    assert text.endswith("as a commit; nothing was sent")


def test_a_release_becomes_one_commit_in_the_layout_of_the_hub(
    release: Path, hub: HubServer
) -> None:
    done = send(release, hub)
    assert hub.uploads.created == [REPO]
    (commit,) = hub.uploads.commits
    assert commit["paths"] == sorted(ALL)
    assert commit["summary"].startswith("Core ML models: 1 archives")
    assert done.url == f"{hub.url}/{REPO}/commit/{hub.refs[REPO, 'main']}"
    there = files(hub)
    assert there[ARCHIVE] == (release / f"{NAME}.zip").read_bytes()
    digest = hashlib.sha256(there[ARCHIVE]).hexdigest()
    assert there["SHA256SUMS"].decode() == f"{digest}  {ARCHIVE}\n"
    assert f"]({ARCHIVE})" in there["README.md"].decode()


def test_what_is_there_already_is_not_sent_again(release: Path, hub: HubServer) -> None:
    send(release, hub)
    requests = len(hub.requests)
    again = send(release, hub)
    assert set(changed(again).values()) == {"unchanged"}
    assert {r.method for r in hub.requests[requests:]} == {"GET"}
    assert len(hub.uploads.commits) == 1
    assert "nothing to send" in publication_text(again, dry_run=False, pull_request=False)
    card = release / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    assert [u.path for u in send(release, hub).changes] == ["README.md"]
    assert hub.uploads.commits[1]["paths"] == ["README.md"]


@pytest.mark.parametrize("chunk_size", [None, 40_000])
def test_a_second_attempt_sends_only_the_rest(
    release: Path, hub: HubServer, chunk_size: int | None
) -> None:
    hub.uploads.chunk_size = chunk_size
    hub.uploads.refuse_after = 1  # the image arrives, the archive does not
    with pytest.raises(InputError, match="the Hub refused with status 403"):
        send(release, hub)
    image = hashlib.sha256((release / ALL[2]).read_bytes()).hexdigest()
    archive = hashlib.sha256((release / f"{NAME}.zip").read_bytes()).hexdigest()
    assert hub.uploads.received == [image]
    assert hub.uploads.commits == []  # no commit names half a release
    hub.uploads.refuse_after = None
    send(release, hub)
    assert hub.uploads.received == [image, archive]
    (commit,) = hub.uploads.commits
    assert commit["paths"] == sorted(ALL)


def test_a_pull_request_leaves_the_branch_alone(release: Path, hub: HubServer) -> None:
    before = hub.push(REPO, {"README.md": b"# old\n", "old.zip": b"old"})
    done = send(release, hub, pull_request=True)
    assert hub.refs[REPO, "main"] == before
    assert hub.uploads.commits[0]["ref"] == "refs/pr/1"
    assert done.url == f"{hub.url}/{REPO}/discussions/1"
    assert changed(done)["README.md"] == "changed"
    assert done.left == ("old.zip",)


def test_somebody_elses_commit_meanwhile_is_not_overwritten(
    release: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    hub.push(REPO, {"README.md": b"# old\n"})
    upload = HfApi.preupload_lfs_files

    def meanwhile(api: HfApi, *args: object, **options: object) -> None:
        hub.push(REPO, {"README.md": b"# theirs\n"})
        upload(api, *args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", meanwhile)
    with pytest.raises(InputError, match="412"):
        send(release, hub)
    assert files(hub) == {"README.md": b"# theirs\n"}


def test_a_login_that_may_not_write_is_explained_without_the_token(
    release: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.uploads.token = "hf_another"
    with pytest.raises(InputError, match="status 401") as error:
        send(release, hub)
    assert "hf auth login" in str(error.value)
    captured = capsys.readouterr()
    assert TOKEN not in str(error.value) + captured.out + captured.err
    assert hub.uploads.received == []


def test_what_xet_reports_is_explained(
    release: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(InputError, match="the Hub refused with status 401"):
        send(release, hub)  # it has no storage to give a token for
    monkeypatch.setattr(
        "huggingface_hub.HfApi.preupload_lfs_files", raising(ConnectionError("Network error: …"))
    )
    with pytest.raises(InputError, match="cannot be reached, or the connection broke"):
        send(release, hub)


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_an_unreachable_hub_is_explained(release: Path, hub: HubServer) -> None:
    hub.stop()
    with pytest.raises(InputError, match="cannot be reached"):
        plan_publication(release, REPO, endpoint=hub.url)


@pytest.mark.parametrize("line", ["license: cc-by-nd-4.0", "license: other", "language: en"])
def test_a_licence_that_forbids_it_is_refused_unless_told(
    release: Path, hub: HubServer, line: str
) -> None:
    card = release / "README.md"
    card.write_text(card.read_text().replace("license: openrail++", line, 1))
    with pytest.raises(LicenseForbids) as error:
        send(release, hub)
    assert error.value.exit_code == 1
    assert hub.requests == []
    assert send(release, hub, allow_license=True).url


def test_a_release_that_has_changed_since_is_not_published(release: Path, hub: HubServer) -> None:
    archive = release / f"{NAME}.zip"
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    with pytest.raises(InputError, match="another SHA-256"):
        send(release, hub)
    archive.unlink()
    with pytest.raises(InputError, match="is missing"):
        send(release, hub)
    with pytest.raises(UserError, match="is no release folder"):
        plan_publication(release.parent, REPO, endpoint=hub.url)


def test_the_repo_is_the_recipes_where_none_is_given(release: Path) -> None:
    assert wanted_repo(release, REPO) == REPO
    with pytest.raises(InputError, match="no repo to publish to"):
        wanted_repo(release, None)
    with pytest.raises(InputError, match="is not a Hub repository"):
        wanted_repo(release, "coreml")
