"""Of a file that is only looked at, headers are fetched: how many bytes, and who gets tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from convert.source import holes, parts
from convert.source.parts import fetch_url_headers
from convert.source.url import Url
from tests.support.file_server import Answer, FileServer

FIRST = 4096
CONTENT = save({f"layers.{n}.weight": np.ones((20, 64), np.float16) for n in range(100)})
HEADER = 8 + int.from_bytes(CONTENT[:8], "little")
ETAG = {"ETag": '"v1"'}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(holes, "FIRST", FIRST)
    monkeypatch.setattr(parts, "FIRST", FIRST)
    with FileServer() as files:
        yield files


@pytest.mark.parametrize("headers", [ETAG, {}, {"ETag": 'W/"weak"'}])
def test_two_requests_bring_a_header_and_no_weights(
    server: FileServer, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.answers["/m"] = Answer(CONTENT, headers=headers)
    found = fetch_url_headers(Url(f"{server.url}/m?token=hush"), tmp_path)
    assert found is not None
    assert [(file.name, file.size) for file in found.files] == [("m", len(CONTENT))]
    assert len(read_weights(tmp_path / "m").tensors) == 100
    asked = [request[1]["range"] for request in server.requests]
    assert asked == [f"bytes=0-{FIRST - 1}", f"bytes={FIRST}-{HEADER - 1}"]
    assert server.sent == HEADER < len(CONTENT) / 20


def test_a_token_goes_to_the_own_host_alone(server: FileServer, tmp_path: Path) -> None:
    there = {"Location": f"{server.store}/blob?signature=s"}
    server.answers["/m"] = Answer(status=302, headers=there)
    server.answers["/blob"] = Answer(CONTENT, headers=ETAG)
    assert fetch_url_headers(Url(f"{server.url}/m"), tmp_path, token="hush") is not None
    logins = [(path.partition("?")[0], sent.get("authorization")) for path, sent in server.requests]
    assert logins == [("/m", "Bearer hush"), ("/blob", None)] * 2  # each anew: addresses expire


@pytest.mark.parametrize(
    "answer", [Answer(CONTENT, ranges=False), Answer(b""), Answer(b"\x80\x02" + CONTENT)]
)
def test_where_parts_do_not_do_it_is_said(
    server: FileServer, tmp_path: Path, answer: Answer
) -> None:
    server.answers["/m"] = answer
    assert fetch_url_headers(Url(f"{server.url}/m"), tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
    assert server.sent <= max(FIRST, len(answer.content) * (not answer.ranges))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(status=401), "refused with status 401"),
        (Answer(status=500), "refused with status 500"),
        (Answer(b"sign in", headers={"Content-Type": "text/html"}), "a web page"),
        (Answer(b"\n<!DOCTYPE html>sign in"), "a web page"),
        (Answer(CONTENT, drops=[100]), "cannot be reached"),
        (Answer(CONTENT, drops=[FIRST, 10]), "cannot be reached"),
    ],
)
def test_what_a_server_does_wrong_is_said(
    server: FileServer, tmp_path: Path, answer: Answer, problem: str
) -> None:
    server.answers["/m"] = answer
    with pytest.raises(InputError, match=problem) as caught:
        fetch_url_headers(Url(f"{server.url}/m?token=hush"), tmp_path / "out", token="hush")
    assert "hush" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile_is_not_mixed(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answers["/m"] = Answer(CONTENT, headers=dict(ETAG))
    original = parts.version_of

    def changed(headers: dict[str, str]) -> str | None:
        answer.headers["ETag"] = '"v2"'
        return original(headers)

    monkeypatch.setattr(parts, "version_of", changed)
    with pytest.raises(InputError, match="another file there than a moment ago"):
        fetch_url_headers(Url(f"{server.url}/m"), tmp_path)


def test_offline_it_says_so(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refused(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.utils.get_session", refused)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        fetch_url_headers(Url(f"{server.url}/m"), tmp_path)
