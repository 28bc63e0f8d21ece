"""A server of single files on 127.0.0.1, with the manners of model sites, good and bad."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support.servers import TwoServers


@dataclass
class Answer:
    """What the server does with a path.

    Attributes:
        drops: of each of these requests in turn, the bytes after which the connection ends.
        ranges: whether parts of the file may be asked for.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drops: list[int] = field(default_factory=list)
    ranges: bool = True


@dataclass
class FileServer:
    """`with FileServer() as server: server.answers["/model"] = Answer(b"…")`."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path, headers
    sent: int = 0  # bytes of files, in all answers

    def __enter__(self) -> FileServer:
        self.servers = TwoServers(_handler(self))
        self.url, self.store = self.servers.urls
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.servers.stop()


def _handler(files: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            files.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            answer = files.answers.get(urlsplit(self.path).path, Answer(b"gone", 404))
            content, start, status = answer.content, 0, answer.status
            asked = self.headers.get("Range")
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            headers = dict(answer.headers)
            is_same = self.headers.get("If-Range", version) == version
            if asked and answer.ranges and is_same and status == 200:
                first, last = asked.removeprefix("bytes=").split("-")
                start, end = int(first), min(int(last or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                content = content[: end + 1]
                status = 206
                if start >= len(answer.content):
                    status, headers["Content-Range"] = 416, f"bytes */{len(answer.content)}"
            body = b"" if status == 416 else content[start:]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.drops:
                body = body[: answer.drops.pop(0)]
                self.close_connection = True
            files.sent += len(body)  # before whoever asked can look at it
            self.wfile.write(body)

    return Handler
