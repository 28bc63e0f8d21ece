"""A commit of files that the Hub has received earlier, by whatever way files travel."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import constants

from convert.source.hub import Repo
from release.publish.sending import Sending, Upload, list_repo
from tests.support.hub_server import HubServer

REPO = "owner/model"


@pytest.mark.parametrize("xet", [True, False])
@pytest.mark.parametrize("pull_request", [True, False])
def test_what_was_received_is_named_and_not_sent(
    xet: bool, pull_request: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Xet anything would be sent to a storage that this Hub has not, and fail."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    contents = [bytes([number]) * 1000 for number in range(3)]
    facts = [{"size": 1000, "sha256": hashlib.sha256(each).hexdigest()} for each in contents]
    with HubServer() as hub:
        monkeypatch.setenv("HF_TOKEN", hub.uploads.token)
        hub.push(REPO, {"README.md": b"# A model\n"})
        kept = [each["sha256"] for each in facts[:2]]
        hub.uploads.objects |= dict(zip(kept, contents, strict=False))
        place = Repo(REPO, endpoint=hub.url)
        sending = Sending(place, list_repo(place), pull_request)
        assert sending.received(facts) == set(kept)
        assert sending.received([]) == set()
        assert sending.commit("nothing") is None
        for number, digest in enumerate(kept):
            sending.name(Upload(f"{number}.zip", 1000, "new", sha256=digest))
        assert sending.commit("what was received")
        assert hub.uploads.received == []
        (commit,) = hub.uploads.commits
        assert commit["paths"] == ["0.zip", "1.zip"]
        assert commit["ref"] == ("refs/pr/1" if pull_request else "main")
        there = hub.commits[REPO, hub.refs[REPO, commit["ref"]]]
        assert [there[f"{number}.zip"] for number in range(2)] == contents[:2]
