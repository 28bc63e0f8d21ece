"""Two HTTP servers on 127.0.0.1: a site, and the other origin that it redirects to."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, because it has seen enough, is none of the server's errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class TwoServers:
    """Servers with the same handler, from construction until `stop`.

    Attributes:
        urls: their origins; no login that one has may be sent to the other.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.urls = [f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers]
        for server in self._servers:
            # The default poll of 0.5 s would be paid at the end of every test.
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close the ports: from here on the servers are unreachable."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
