"""Variables that a library cannot use are named, in one error; passwords in them are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.process.environment import blame

CASES = {
    "a SOCKS proxy": ({"ALL_PROXY": "socks5://u:geheim@127.0.0.1:9"}, "ALL_PROXY: a SOCKS proxy"),
    "a SOCKS proxy of another kind": (
        {"https_proxy": "socks5h://127.0.0.1:9"},
        "https_proxy: a SO",
    ),
    "no proxy's scheme": (
        {"HTTPS_PROXY": "ftp://127.0.0.1:9"},
        "HTTPS_PROXY: is not the URL of a p",
    ),
    "no host": ({"http_proxy": "://"}, "http_proxy: is not the URL of a proxy"),
    "no port": ({"HTTPS_PROXY": "127.0.0.1:geheim"}, "HTTPS_PROXY: is not the URL of a proxy"),
    "half an address": ({"ALL_PROXY": "http://[::1"}, "ALL_PROXY: is not the URL of a proxy"),
    "a word for a number": (
        {"HF_HUB_ETAG_TIMEOUT": "ten"},
        "HF_HUB_ETAG_TIMEOUT: `ten` is not a whole number",
    ),
    "a fraction": (
        {"HF_HUB_DOWNLOAD_TIMEOUT": "1.5"},
        "HF_HUB_DOWNLOAD_TIMEOUT: `1.5` is not a whole number",
    ),
    "a Hub without scheme": (
        {"HF_ENDPOINT": "hub.example"},
        "HF_ENDPOINT: is not the URL of a Hub",
    ),
    "half a Hub": ({"HF_ENDPOINT": "http://[::1"}, "HF_ENDPOINT: is not the URL of a Hub"),
    "a Hub's port that is a word": (
        {"HF_ENDPOINT": "http://127.0.0.1:geheim"},
        "HF_ENDPOINT: is not the URL of a Hub",
    ),
    "an empty Hub": ({"HF_ENDPOINT": ""}, "HF_ENDPOINT: is not the URL of a Hub"),
    "certificates that are not there": (
        {"SSL_CERT_FILE": "/nowhere/geheim.pem", "HF_ENDPOINT": "https://127.0.0.1:9"},
        "SSL_CERT_FILE: is not a file of certificates",
    ),
    "certificates that are none": (
        {"SSL_CERT_FILE": __file__, "HF_ENDPOINT": "https://127.0.0.1:9"},
        "SSL_CERT_FILE: is not a file of certificates",
    ),
    "letters in a token": (
        {"HF_TOKEN": "hf_gehéim", "HF_ENDPOINT": "http://127.0.0.1:9"},
        "HF_TOKEN: is not a token",
    ),
}


@pytest.mark.parametrize(("environment", "says"), CASES.values(), ids=CASES)
def test_a_variable_that_cannot_be_used_is_named(
    environment: dict[str, str], says: str, tmp_path: Path
) -> None:
    arguments = ["download", "me/my-xl", "--out", str(tmp_path / "out")]
    found = subprocess.run(
        [sys.executable, "-m", "sdxl_coreml", *arguments],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith(f"error: {says}")
    assert len(found.stderr.splitlines()) == 2
    assert "geh" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_mistake_of_ours_is_blamed_on_nothing() -> None:
    with pytest.raises(ValueError, match="ten") as caught:
        int("ten")
    assert blame(caught.value, {"HF_HUB_ETAG_TIMEOUT": "ten"}) is None
