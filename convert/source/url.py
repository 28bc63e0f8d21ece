"""One file behind a URL: fetched into a partial file that the next run continues, checked, kept.

Model sites answer with a redirect to a signed address that soon expires, so every try begins at the
URL itself. A server's ETag, or else its date of change, says whether what is there already is the
beginning of what it has now (RFC 9110, `Range` and `If-Range`).

A URL may hold a password or a token, in front of the host or in its query. Nothing but scheme, host
and path is ever said, written or recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from convert.errors import InputError
from convert.files.appearing import appearing, locked
from convert.files.disk import digest_file, disk_error
from convert.files.json_files import read_object
from convert.process.environment import is_of_certificates
from convert.source.hub import FileProgress, quiet, require_space
from convert.source.select import File
from convert.source.snapshot import Snapshot, begin, claim, finish, recorded

TIMEOUT = 60  # seconds without a byte
SECRET = re.compile(r"token|key|secret|sig|auth|pass|credential", re.IGNORECASE)
REFUSALS = {
    401: "Give a token of your account there as SDXL_COREML_TOKEN.",
    403: "It is not for everyone: accept its terms there, and give a token of your account as "
    "SDXL_COREML_TOKEN.",
    404: "Check the address; the file may have been removed.",
    410: "It has been removed.",
    429: "Too many requests: wait some minutes and run it again, it goes on where it stopped.",
}


@dataclass(frozen=True)
class Url:
    """A web address; `str` of it is what may be said.

    Attributes:
        address: as it was given, with whatever secret is in it.

    Raises:
        InputError: no web address.
    """

    address: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.address)
            good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            good = False
        if not good or re.search(r"[\x00-\x20\x7f]", self.address):
            raise InputError("not a web address", hint="It starts with https:// and a host.")

    def __str__(self) -> str:
        url = urlsplit(self.address)
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.hostname}{port}{url.path}"

    @property
    def key(self) -> str:
        """What it is kept under: SHA-256 (hex) of the address, which says nothing of a secret."""
        return hashlib.sha256(self.address.encode()).hexdigest()

    @property
    def secret(self) -> str | None:
        """The part of it that looks like a secret, by name; None if there is none."""
        url = urlsplit(self.address)
        if url.username or url.password:
            return "a login"
        names = [name for name, _ in parse_qsl(url.query, keep_blank_values=True)]
        return next((f"`{name}`" for name in names if SECRET.search(name)), None)


def fetch_url(
    url: Url,
    out: Path | None = None,
    *,
    sha256: str | None = None,
    token: str | None = None,
    progress: FileProgress = lambda *_: None,
) -> Snapshot:
    """The file behind `url`, in `out` or else in our part of the Hub's cache.

    A file that is there whole is not asked for again, unless its digest is not `sha256`.

    Args:
        sha256: that the file must have, in hex.
        token: sent as `Authorization: Bearer` to the URL's own host, never to where it redirects.
        progress: told the file, the bytes done and those of the whole, 0 if the server is silent.

    Raises:
        InputError: the server refuses, or sends a web page; a connection that brings nothing more;
            a file with another digest; no room; `out` holds something else.
    """
    folder = out or _place(url, sha256)
    download = _Download(url, folder, sha256, token, progress)
    try:
        with quiet(), ExitStack() as stack:
            if out is None:  # the cache is every run's
                stack.enter_context(locked(folder.with_suffix(".lock")))
            return download.snapshot()
    except OSError as error:
        if is_of_certificates(error):
            raise  # whoever reads the environment knows the variable that names them
        raise disk_error(error, folder) from None


def is_kept(url: Url, sha256: str | None = None) -> bool:
    """Whether our part of the Hub's cache has the file whole, so that `fetch_url` asks nobody."""
    done = recorded(_place(url, sha256))
    return done is not None and sha256 in (None, done.files[0].sha256)


def _place(url: Url, sha256: str | None) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "sdxl-coreml" / "files" / (sha256 or url.key)


@contextmanager
def asking(url: Url) -> Iterator[None]:
    """Raise InputError where nobody may be asked, for the environment says so."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        problem, hint = "not on this disk, and HF_HUB_OFFLINE is set", "Unset it."
        raise InputError(problem, where=url, hint=hint) from None


@dataclass(frozen=True)
class _Download:
    url: Url
    folder: Path
    sha256: str | None
    token: str | None
    progress: FileProgress

    def snapshot(self) -> Snapshot:
        claim(self.folder, str(self.url))
        done = recorded(self.folder)
        if done is not None and self.sha256 in (None, done.files[0].sha256):
            return done
        is_new = not self.folder.exists()
        staging = begin(self.folder, str(self.url), ())
        part = staging / "part"
        try:
            name = self._fetched(part, staging / "answer.json")
            _require_no_page(part, self.url)
            found = digest_file(part)
            if self.sha256 not in (None, found):
                part.unlink()
                raise InputError(
                    f"the file's SHA-256 is {found}, not {self.sha256}",
                    where=self.url,
                    hint="It is another file, or arrived damaged: compare with what its page says.",
                )
        except InputError:
            if is_new and not (part.is_file() and part.stat().st_size):  # nothing to go on from
                shutil.rmtree(self.folder)
            raise
        file = File(name, part.stat().st_size, found)
        part.replace(self.folder / name)
        return finish(Snapshot(self.folder, None, None, (file,)), str(self.url), None)

    def _fetched(self, part: Path, answer: Path) -> str:
        """Make `part` the whole file; returns what it is called."""
        from huggingface_hub.errors import HTTPError

        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                with asking(self.url):
                    return self._asked(part, answer)
            except HTTPError as error:
                if part.is_file() and part.stat().st_size > before:
                    continue  # a connection that drops is asked for the rest while bytes arrive
                raise unreachable(error, self.url) from None

    def _asked(self, part: Path, answer: Path) -> str:
        """One request for what is missing of `part`; returns what the file is called."""
        from huggingface_hub.utils import get_session

        done, version = _begun(part, answer)
        headers = {"Accept-Encoding": "identity"}  # a compressed body cannot be continued
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if done and version:
            headers |= {"Range": f"bytes={done}-", "If-Range": version}
        with get_session().stream(
            "GET", self.url.address, headers=headers, follow_redirects=True, timeout=TIMEOUT
        ) as response:
            if response.status_code == 416:
                if response.headers.get("content-range") == f"bytes */{done}":
                    return file_name(response.headers, self.url)  # nothing is missing
                part.unlink()
                return self._asked(part, answer)
            require_file(response.status_code, response.headers, self.url)
            start = done if response.status_code == 206 and _starts_at(response, done) else 0
            length = int(response.headers.get("content-length") or 0)
            total = start + length if length else 0
            name = file_name(response.headers, self.url)
            require_space(self.folder, [File(name, total - start)] if total else [], [])
            _write(answer, {"version": version_of(response.headers)})
            with part.open("r+b" if start else "wb") as stream:
                stream.seek(start)
                stream.truncate()
                for chunk in response.iter_bytes():  # as they come: none is lost with the next
                    stream.write(chunk)
                    self.progress(name, stream.tell(), max(total, stream.tell()))
        return name


def _begun(part: Path, answer: Path) -> tuple[int, str | None]:
    """The bytes that are there, and the version of the file that they are of, if it is known."""
    try:
        version = read_object(answer).get("version")
        return part.stat().st_size, version if isinstance(version, str) else None
    except (InputError, OSError):
        return 0, None


def _write(answer: Path, facts: Mapping[str, Any]) -> None:
    with appearing(answer) as new:
        new.write_text(json.dumps(facts), "utf-8")


def version_of(headers: Mapping[str, str]) -> str | None:
    """What tells one version of a file from the next byte by byte; weak ETags do not."""
    etag = headers.get("etag")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified")


def _starts_at(response: Any, done: int) -> bool:
    return str(response.headers.get("content-range", "")).startswith(f"bytes {done}-")


def require_file(status: int, headers: Mapping[str, str], url: Url) -> None:
    """Raise InputError unless the server has answered with a file, or a part of one."""
    if status in (200, 206):
        if headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            raise page(url)
        return
    hint = REFUSALS.get(status)
    if hint is None:
        hint = "Try again later." if status >= 500 else "Give the address of the file itself."
    raise InputError(f"the server refused with status {status}", where=url, hint=hint)


def _require_no_page(part: Path, url: Url) -> None:
    with part.open("rb") as file:
        start = file.read(512)
    if is_page(start):
        part.unlink()
        raise page(url)


def is_page(start: bytes) -> bool:
    """Whether a file that begins so is a web page."""
    return start[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))


def page(url: Url) -> InputError:
    """What is wrong where a web page came instead of a file."""
    return InputError(
        "a web page, not a file",
        where=url,
        hint="Give the address of its download button; some sites want SDXL_COREML_TOKEN.",
    )


def unreachable(error: Exception, url: Url) -> InputError:
    """What an error of the connection means."""
    if type(error).__name__ == "TooManyRedirects":
        return InputError("redirects without an end", where=url, hint="Give another address.")
    return InputError(
        "the server cannot be reached, or sends nothing any more",
        where=url,
        hint="Check the connection and run it again: it goes on where it stopped.",
    )


def file_name(headers: Mapping[str, str], url: Url) -> str:
    """What the server calls the file, or else the address; one that can be a file's name here."""
    message = Message()
    message["content-disposition"] = headers.get("content-disposition", "")
    names = (message.get_filename(), unquote(urlsplit(url.address).path))
    told = (re.split(r"[/\\]", name or "")[-1] for name in names)
    usable = (re.sub(r"[\x00-\x1f:*?\"<>|]", "_", name).strip(". ") for name in told)
    return next((name for name in usable if name), "checkpoint")[-200:]
