"""A Hugging Face Hub on 127.0.0.1, as far as huggingface_hub needs one for models.

It speaks what `HfApi.model_info` and `/resolve/` ask for, sends LFS files by a redirect as the
Hub's CDN does, announces no Xet, keeps a log of requests, and can drop a connection on purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_upload import Uploads
from tests.support.hub_upload import answer as answer_upload
from tests.support.servers import TwoServers

LFS = (".zip", ".png", ".safetensors", ".bin", ".onnx", ".msgpack", ".onnx_data", ".ckpt")


@dataclass
class Request:
    """One request as it arrived; `sent` counts the bytes of its body that went out."""

    method: str
    path: str
    range: str | None
    login: str | None
    sent: int = 0


@dataclass
class HubServer:
    """`with HubServer() as hub: hub.push("owner/name", {"a.json": b"{}"})`."""

    gated: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    drop_after: int | None = None  # bytes after which the next body ends, once
    corrupt: bool = False  # flip the first byte of LFS files
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    uploads: Uploads = field(default_factory=Uploads)

    def __enter__(self) -> HubServer:
        self.servers = TwoServers(_handler(self))
        self.url, self.cdn = self.servers.urls
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the ports: from here on the Hub is unreachable."""
        self.servers.stop()

    def push(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Commit `files` as all of `branch`; returns the commit."""
        state = "\n".join(f"{n} {git_blob_id(b)}" for n, b in sorted(files.items()))
        commit = hashlib.sha1(f"{repo}\n{state}".encode()).hexdigest()
        self.commits[repo, commit] = dict(files)
        self.refs[repo, branch] = commit
        return commit

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order, without their repo and revision."""
        return [
            unquote(r.path.split("/resolve/", 1)[1].split("/", 1)[1])
            for r in self.requests
            if r.method == "GET" and "/resolve/" in r.path
        ]

    def bytes_sent(self) -> int:
        """Bytes of file contents that went out."""
        return sum(r.sent for r in self.requests)


def git_blob_id(content: bytes) -> str:
    """The Hub's `blobId` and the ETag of files outside LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms between headers and body

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.log_request_of()
            answer_upload(self, hub)

        def do_PUT(self) -> None:
            self.log_request_of()
            answer_upload(self, hub)

        def log_request_of(self) -> None:
            login = self.headers.get("Authorization")
            hub.requests.append(Request(self.command, self.path, None, login))

        def answer(self) -> None:
            asked, login = self.headers.get("Range"), self.headers.get("Authorization")
            self.request_log = Request(self.command, self.path, asked, login)
            hub.requests.append(self.request_log)
            url = urlsplit(self.path)
            if url.path.startswith("/cdn/"):
                self.content(*self.find_blob(url.path.removeprefix("/cdn/")))
            elif url.path.startswith("/api/models/"):
                repo, _, revision = url.path.removeprefix("/api/models/").partition("/revision/")
                self.listing(repo, unquote(revision) or "main", "blobs" in parse_qs(url.query))
            else:
                repo, _, rest = url.path.lstrip("/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                self.resolve(repo, unquote(revision), unquote(name))

        def find_blob(self, sha256: str) -> tuple[bytes, str]:
            for files in list(hub.commits.values()):
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return content, sha256
            raise KeyError(sha256)

        def commit(self, repo: str, revision: str) -> str | None:
            """The commit, or None after the Hub's own error answers."""
            if not any(name == repo for name, _ in hub.refs):
                # Without a valid login the Hub does not tell missing from private.
                self.error(401, "RepoNotFound", "Invalid username or password.")
                return None
            commit = hub.refs.get((repo, revision), revision)
            if (repo, commit) not in hub.commits:
                self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return commit

        def listing(self, repo: str, revision: str, blobs: bool) -> None:
            commit = self.commit(repo, revision)
            if commit is None:
                return
            siblings = []
            for name, content in hub.commits[repo, commit].items():
                entry: dict[str, Any] = {"rfilename": name}
                if blobs:
                    entry |= {"size": len(content), "blobId": git_blob_id(content)}
                    if name.endswith(LFS):
                        sha256 = hashlib.sha256(content).hexdigest()
                        entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
                siblings.append(entry)
            info = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
            self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def resolve(self, repo: str, revision: str, name: str) -> None:
            commit = self.commit(repo, revision)
            if commit is None:
                return
            if repo in hub.gated:
                return self.error(403, "GatedRepo", f"Access to model {repo} is restricted.")
            content = hub.commits[repo, commit].get(name)
            if content is None:
                return self.error(404, "EntryNotFound", "Entry not found")
            if not name.endswith(LFS):
                return self.content(content, git_blob_id(content), commit)
            sha256 = hashlib.sha256(content).hexdigest()
            headers = {
                "Location": f"{hub.cdn}/cdn/{sha256}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{sha256}"',
            }
            self.send(302, b"", headers)

        def content(self, content: bytes, etag: str, commit: str | None = None) -> None:
            if hub.corrupt and len(etag) == 64:
                content = bytes([content[0] ^ 1]) + content[1:]
            headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            if commit:
                headers["X-Repo-Commit"] = commit
            asked, status = self.headers.get("Range"), 200
            if asked:
                first, last = asked.removeprefix("bytes=").split("-")
                status, whole = 206, len(content)
                start, end = int(first), int(last or whole - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
                content = content[start : end + 1]
            self.send(status, content, headers, is_file=True)

        def error(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self.send(status, json.dumps({"error": message}).encode(), headers)

        def send(
            self, status: int, body: bytes, headers: Mapping[str, str], *, is_file: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if is_file and hub.drop_after is not None and len(body) > hub.drop_after:
                body, hub.drop_after = body[: hub.drop_after], None
                self.close_connection = True
            if is_file:
                self.request_log.sent = len(body)
            with contextlib.suppress(ConnectionError):  # the client was killed, as some tests want
                self.wfile.write(body)

    return Handler


def sdxl_repo(weights: Mapping[str, bytes], *, clutter: bool = True) -> dict[str, bytes]:
    """Files of a diffusers SDXL repo around `weights`, by default as cluttered as real ones."""
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
    index: dict[str, Any] = {part: ["library", "Class"] for part in parts}
    files = {
        "model_index.json": json.dumps(
            {"_class_name": "StableDiffusionXLPipeline", **index}
        ).encode(),
        "README.md": b"# card\n",
        "LICENSE.md": b"CreativeML Open RAIL++-M\n",
        "scheduler/scheduler_config.json": b'{"beta_start": 0.00085}',
    }
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        files[f"{part}/config.json"] = json.dumps({"part": part}).encode()
    for part in ("tokenizer", "tokenizer_2"):
        files |= {f"{part}/{name}": f"{part} {name}".encode() for name in TOKENIZER}
    if clutter:
        files |= {name: f"clutter {name}".encode() for name in CLUTTER}
    return files | dict(weights)


TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")

# What the Hub's SDXL repos hold besides: the base model, its refiner, Animagine, Juggernaut, ….
CLUTTER = (
    ".gitattributes",
    "01.png",
    "animagine-xl-3.1.safetensors",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "pipeline.png",
    "feature_extractor/preprocessor_config.json",
    "image_encoder/model.safetensors",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "text_encoder_2/flax_model.msgpack",
    "text_encoder_2/model.onnx",
    "text_encoder_2/model.onnx_data",
    "text_encoder_2/openvino_model.xml",
    "text_encoder_2/pytorch_model.bin",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "unet/model.onnx_data",
    "unet/openvino_model.bin",
    "unet/openvino_model.xml",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.bin",
    "vae/sdxl_vae.safetensors",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/model.onnx",
    "vae_encoder/model.onnx",
)
