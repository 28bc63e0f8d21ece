"""The half of the Hub's protocol that receives files, for `hub_server`: create, preupload, LFS,
commit.

LFS objects arrive by one PUT or, with `chunk_size`, in parts; each is checked against its SHA-256
and kept whether a commit names it or not, as the Hub does."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.support.hub_server import HubServer


@dataclass
class Uploads:
    """What has been sent to the Hub; and how it behaves."""

    token: str = "hf_secret"  # what writing needs
    chunk_size: int | None = None  # of parts; None for one PUT
    refuse_after: int | None = None  # objects after which uploads are refused, once
    on_receipt: Callable[[int], None] | None = None  # told how many objects there are, each time
    objects: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)  # SHA-256 of objects, as they arrived whole
    commits: list[dict[str, Any]] = field(default_factory=list)  # header and paths of each
    created: list[str] = field(default_factory=list)


def answer(handler: BaseHTTPRequestHandler, hub: HubServer) -> None:
    """Answer a POST or PUT."""
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    if not body and handler.headers.get("Transfer-Encoding") == "chunked":
        body = _chunked(handler)
    url = urlsplit(handler.path)
    state, path = hub.uploads, url.path
    signed = path.startswith("/lfs/")  # a signed URL, which needs no login
    if not signed and handler.headers.get("Authorization") != f"Bearer {state.token}":
        return _send(handler, 401, {"error": "Invalid username or password."})
    if path == "/api/repos/create":
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        state.created.append(repo)
        hub.push(repo, {".gitattributes": b"*.zip filter=lfs\n"})
        return _send(handler, 200, {"url": f"{hub.url}/{repo}"})
    if path == "/api/validate-yaml":
        return _send(handler, 200, {"errors": [], "warnings": []})
    if path.endswith("/info/lfs/objects/batch"):
        return _send(handler, 200, _batch(json.loads(body), hub))
    if signed:
        return _receive(handler, hub, path, body)
    repo, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
    if rest:
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if _is_lfs(f["path"]) else "regular",
                "shouldIgnore": False,
            }
            for f in json.loads(body)["files"]
        ]
        return _send(handler, 200, {"files": modes})
    repo, _, branch = path.removeprefix("/api/models/").partition("/commit/")
    if branch:
        is_pull_request = "create_pr" in parse_qs(url.query)
        return _commit(handler, hub, repo, unquote(branch), body, is_pull_request)
    _send(handler, 404, {"error": path})


def _is_lfs(path: str) -> bool:
    return ".zip" in path or path.endswith((".png", ".safetensors"))


def _batch(asked: dict[str, Any], hub: HubServer) -> dict[str, Any]:
    objects = []
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.uploads.objects:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}"}
            if hub.uploads.chunk_size:
                count = -(-size // hub.uploads.chunk_size)
                upload["header"] = {"chunk_size": str(hub.uploads.chunk_size)} | {
                    str(n): f"{hub.url}/lfs/{oid}/{n}" for n in range(1, count + 1)
                }
            entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}
        objects.append(entry)
    return {"transfer": "multipart" if hub.uploads.chunk_size else "basic", "objects": objects}


def _receive(handler: BaseHTTPRequestHandler, hub: HubServer, path: str, body: bytes) -> None:
    state = hub.uploads
    oid, _, rest = path.removeprefix("/lfs/").partition("/")
    if rest == "verify":
        asked = json.loads(body)
        good = len(state.objects.get(oid, b"")) == asked["size"]
        return _send(handler, 200 if good else 404, {})
    if state.refuse_after is not None and len(state.received) >= state.refuse_after:
        return _send(handler, 403, {"error": "the signed URL has expired"})
    if rest:  # a part
        state.parts.setdefault(oid, {})[int(rest)] = body
        return _send(handler, 200, {}, {"ETag": hashlib.md5(body).hexdigest()})
    if handler.command == "POST":  # all parts are there
        parts = state.parts.pop(oid)
        body = b"".join(parts[p["partNumber"]] for p in json.loads(body)["parts"])
    if hashlib.sha256(body).hexdigest() != oid:
        return _send(handler, 400, {"error": "another SHA-256"})
    state.objects[oid] = body
    state.received.append(oid)
    if state.on_receipt is not None:
        state.on_receipt(len(state.received))
    _send(handler, 200, {})


def _commit(
    handler: BaseHTTPRequestHandler,
    hub: HubServer,
    repo: str,
    branch: str,
    body: bytes,
    is_pull_request: bool,
) -> None:
    header, *lines = [json.loads(line) for line in body.splitlines()]
    current = hub.refs[repo, branch]
    if header["value"].get("parentCommit") not in (None, current):
        return _send(handler, 412, {"error": "A commit has happened since."})
    files = dict(hub.commits[repo, current])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        else:
            files[value["path"]] = hub.uploads.objects[value["oid"]]
    target = "refs/pr/1" if is_pull_request else branch
    commit = hub.push(repo, files, target)
    paths = sorted(line["value"]["path"] for line in lines)
    hub.uploads.commits.append(
        {"ref": target, "summary": header["value"]["summary"], "paths": paths}
    )
    found = {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit}
    if is_pull_request:
        found["pullRequestUrl"] = f"{hub.url}/{repo}/discussions/1"
    _send(handler, 200, found)


def _chunked(handler: BaseHTTPRequestHandler) -> bytes:
    body = b""
    while count := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(count)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    value: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, text)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
