"""Parts of a file behind a URL, for whoever only looks at it: RFC 9110, `Range` and `If-Range`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.source.holes import FIRST, write_headers
from convert.source.hub import quiet
from convert.source.select import File
from convert.source.snapshot import Snapshot
from convert.source.url import (
    TIMEOUT,
    Url,
    asking,
    file_name,
    is_page,
    page,
    require_file,
    unreachable,
    version_of,
)


def fetch_url_headers(url: Url, folder: Path, *, token: str | None = None) -> Snapshot | None:
    """The headers of the file behind a URL, in `folder`, in front of a hole of its size.

    Args:
        token: as `convert.source.url.fetch_url` sends it.

    Returns:
        None where all of it is needed: the server sends no parts, or the file is one whose headers
        lie between its weights.

    Raises:
        InputError: the server refuses, cannot be reached, sends a web page, or has put another file
            in its place meanwhile.
    """
    with quiet():
        found = _Remote.ask(url, token)
        if found is None:
            return None
        if not write_headers(folder / found.name, found.size, found.read):
            return None
    return Snapshot(folder, None, None, (File(found.name, found.size),))


@dataclass(frozen=True)
class _Remote:
    """A file that its server sends parts of."""

    url: Url
    token: str | None
    name: str
    size: int
    version: str | None
    start: bytes  # its first bytes

    @classmethod
    def ask(cls, url: Url, token: str | None) -> _Remote | None:
        """The file, by its first part; None if the server sends no parts."""
        with _answer(url, token, {"Range": f"bytes=0-{FIRST - 1}"}) as response:
            if response.status_code == 416:  # an empty file
                return None
            require_file(response.status_code, response.headers, url)
            size = _size(response.headers)
            if response.status_code != 206 or size is None:
                return None
            start = _content(response, min(FIRST, size))
            if is_page(start):
                raise page(url)
            name, version = file_name(response.headers, url), version_of(response.headers)
        return cls(url, token, name, size, version, start)

    def read(self, start: int, count: int) -> bytes:
        """So many bytes from an offset on, all of which the file has."""
        if start + count <= len(self.start):
            return self.start[start : start + count]
        asked = {"Range": f"bytes={start}-{start + count - 1}"}
        if self.version:
            asked["If-Range"] = self.version
        with _answer(self.url, self.token, asked) as response:
            require_file(response.status_code, response.headers, self.url)
            told = f"bytes {start}-{start + count - 1}/{self.size}"
            if response.status_code == 206 and response.headers.get("content-range") == told:
                data = _content(response, count)
                if len(data) == count:
                    return data
        raise InputError(
            "the server has another file there than a moment ago, or sends no parts any more",
            where=self.url,
            hint="Run it again.",
        )


@contextmanager
def _answer(url: Url, token: str | None, headers: Mapping[str, str]) -> Iterator[Any]:
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import get_session

    with asking(url):
        try:
            sent = {"Accept-Encoding": "identity", **headers}
            if token:
                sent["Authorization"] = f"Bearer {token}"
            with get_session().stream(
                "GET", url.address, headers=sent, follow_redirects=True, timeout=TIMEOUT
            ) as response:
                yield response
        except HTTPError as error:
            raise unreachable(error, url) from None


def _size(headers: Mapping[str, str]) -> int | None:
    """The size of the whole file, where the answer is a part from its start."""
    found = re.fullmatch(r"bytes 0-\d+/(\d+)", headers.get("content-range", ""))
    return int(found[1]) if found else None


def _content(response: Any, count: int) -> bytes:
    """The first bytes of the answer; a server that sends more is not listened to."""
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) >= count:
            break
    return bytes(data[:count])
