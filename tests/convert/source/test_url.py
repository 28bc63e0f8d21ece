"""Files behind URLs: continued, checked, kept, and no secret in anything that is said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.errors import InputError
from convert.source import url as module
from convert.source.download import download, parse_source
from convert.source.url import Url, fetch_url
from tests.support.file_server import Answer, FileServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ETAG = {"ETag": '"v1"'}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with FileServer() as files:
        yield files


def test_a_file_is_fetched_once_and_kept(server: FileServer) -> None:
    server.answers["/models/my%20model.safetensors"] = Answer(CONTENT)
    source = parse_source(f"{server.url}/models/my%20model.safetensors?type=Model")
    seen: list[tuple[str, int, int]] = []
    first = download(source, progress=lambda *told: seen.append(told))
    again = download(source)
    assert first == again
    assert first.path.name == "my model.safetensors"
    assert first.path.read_bytes() == CONTENT
    assert [(f.size, f.sha256) for f in first.files] == [(len(CONTENT), DIGEST)]
    assert len(server.requests) == 1
    assert server.requests[0][0].endswith("?type=Model")
    assert seen[-1] == ("my model.safetensors", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="nova XL.safetensors"', "nova XL.safetensors"),
        ("attachment; filename*=UTF-8''n%C3%B6va.safetensors", "növa.safetensors"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\x\\\\y.ckpt"', "y.ckpt"),
        ('attachment; filename=".."', "128713"),
        ("inline", "128713"),
    ],
)
def test_a_file_is_called_as_the_server_says_but_lies_where_we_say(
    server: FileServer, tmp_path: Path, header: str, name: str
) -> None:
    server.answers["/download/128713"] = Answer(b"x", headers={"Content-Disposition": header})
    found = fetch_url(Url(f"{server.url}/download/128713"), tmp_path / "out")
    assert found.path / found.files[0].name == tmp_path / "out" / name
    assert (tmp_path / "out" / name).read_bytes() == b"x"


@pytest.mark.parametrize("headers", [ETAG, {"Last-Modified": "Fri, 27 Nov 2026 08:00:00 GMT"}])
def test_a_connection_that_drops_is_asked_for_the_rest(
    server: FileServer, headers: dict[str, str]
) -> None:
    server.answers["/m"] = Answer(CONTENT, headers=headers, drops=[300_000, 200_000])
    found = fetch_url(Url(f"{server.url}/m"))
    assert (found.path / "m").read_bytes() == CONTENT
    ranges = [told.get("range") for _, told in server.requests]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(asked is not None for asked in ranges[1:])


def test_a_killed_download_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.answers["/m"] = Answer(CONTENT, headers=ETAG)

    def killed(_name: str, done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_url(Url(f"{server.url}/m"), tmp_path / "out", progress=killed)
    found = fetch_url(Url(f"{server.url}/m"), tmp_path / "out")
    assert (found.path / "m").read_bytes() == CONTENT
    assert server.requests[1][1]["range"].startswith("bytes=")
    assert server.requests[1][1]["if-range"] == '"v1"'
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".sdxl-coreml.json", "m"]


@pytest.mark.parametrize("change", ["another version", "no ranges", "no version"])
def test_what_was_begun_is_only_continued_where_it_is_the_same_file(
    server: FileServer, tmp_path: Path, change: str
) -> None:
    answer = server.answers["/m"] = Answer(b"old" * 1000, headers=dict(ETAG), drops=[1000, 0])
    with pytest.raises(InputError, match="sends nothing any more"):
        fetch_url(Url(f"{server.url}/m"), tmp_path / "out")
    answer.content = CONTENT
    answer.headers = {} if change == "no version" else {"ETag": '"v2"'}
    answer.ranges = change != "no ranges"
    found = fetch_url(Url(f"{server.url}/m"), tmp_path / "out")
    assert (found.path / "m").read_bytes() == CONTENT


def test_a_download_killed_at_its_end_asks_for_nothing_more(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/m"] = Answer(CONTENT, headers=ETAG)
    with monkeypatch.context() as patch:
        patch.setattr(module, "digest_file", lambda path: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            fetch_url(Url(f"{server.url}/m"), tmp_path / "out")
    sent = []
    found = fetch_url(Url(f"{server.url}/m"), tmp_path / "out", progress=lambda *t: sent.append(t))
    assert (found.path / found.files[0].name).read_bytes() == CONTENT
    assert sent == []


def test_a_redirect_gets_no_login(server: FileServer, tmp_path: Path) -> None:
    server.answers["/m"] = Answer(status=302, headers={"Location": f"{server.store}/s?sig=1"})
    server.answers["/s"] = Answer(CONTENT)
    address = server.url.replace("//", "//me:pass@") + "/m?token=secret"
    out = tmp_path / "out"
    fetch_url(Url(address), out, token="secret")
    logins = [told.get("authorization") for _, told in server.requests]
    assert logins[0] is not None
    assert logins[1] is None
    record = (out / ".sdxl-coreml.json").read_text()
    assert "secret" not in record
    assert "pass" not in record


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(b"no", 401), "refused with status 401"),
        (Answer(b"no", 403), "refused with status 403"),
        (Answer(b"no", 404), "refused with status 404"),
        (Answer(b"no", 429), "refused with status 429"),
        (Answer(b"no", 500), "refused with status 500"),
        (Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "a web page"),
        (Answer(b"\n<!DOCTYPE html><html>"), "a web page, not a file"),
        (Answer(status=302, headers={"Location": "/m"}), "redirects without an end"),
        (Answer(status=302, headers={"Location": "ftp://host/m"}), "cannot be reached"),
        (
            Answer(status=302, headers={"Location": "http://[::1"}),
            "cannot be reached",
        ),
        (Answer(CONTENT, drops=[0, 0, 0]), "cannot be reached, or sends nothing any more"),
    ],
)
def test_what_a_server_does_instead_is_said_without_secrets(
    server: FileServer, tmp_path: Path, answer: Answer, problem: str
) -> None:
    server.answers["/m"] = answer
    address = f"{server.url}/m?api_key=secret"
    with pytest.raises(InputError, match=problem) as error:
        fetch_url(Url(address), tmp_path / "out", token="secret")
    assert error.value.hint
    assert f"{server.url}/m" in str(error.value)
    assert "secret" not in str(error.value) + str(error.value.hint)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("address", ["http://h:99999/m", "http://[::1/m", "http://h/a\nb"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(InputError, match="not a web address"):
        parse_source(address)


def test_another_digest_is_refused_and_the_file_is_not_kept(
    server: FileServer, tmp_path: Path
) -> None:
    server.answers["/m"] = Answer(CONTENT)
    wanted = "0" * 64
    for out in (None, tmp_path / "out"):
        with pytest.raises(InputError, match=f"SHA-256 is {DIGEST}, not {wanted}"):
            fetch_url(Url(f"{server.url}/m"), out, sha256=wanted)
    assert not list(tmp_path.rglob("m"))
    found = fetch_url(Url(f"{server.url}/m?token=1"), sha256=DIGEST)
    # A file of that digest is had, whatever address it came from.
    assert fetch_url(Url(f"{server.url}/m?token=2"), sha256=DIGEST) == found
    assert len(server.requests) == 3


def test_out_of_something_else_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    server.answers["/m"] = Answer(CONTENT)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="files that no download of ours put there; left as it is"):
        fetch_url(Url(f"{server.url}/m"), tmp_path)
    assert not server.requests


def test_offline_is_said(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/m"] = Answer(CONTENT)
    fetch_url(Url(f"{server.url}/m"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_url(Url(f"{server.url}/m")).files[0].sha256 == DIGEST
    with pytest.raises(InputError, match="not on this disk, and HF_HUB_OFFLINE is set"):
        fetch_url(Url(f"{server.url}/other"))
