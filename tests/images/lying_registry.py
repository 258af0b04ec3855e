"""A registry on loopback that lies, cuts and stalls as a test tells it to."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from tests.images.build import Blobs, Json

Answer = Callable[["Request"], bool]


class Request(BaseHTTPRequestHandler):
    """One request; `lies` may answer it first."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        registry = self.server.registry
        registry.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        if registry.lie is not None and registry.lie(self):
            return
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(.+)", path)
        if found is None:
            return self.say(404)
        name = registry.tags.get(found[3], found[3])
        content = registry.blobs.by_digest.get(name)
        if content is None:
            return self.say(404)
        kind = json.loads(content)["mediaType"] if found[2] == "manifests" else "application/octet-stream"
        more: dict[str, Any] = {"Content-Type": kind}
        offset = int(re.findall(r"[0-9]+", self.headers.get("Range", "0"))[0])
        if offset:
            span = f"bytes {offset}-{len(content) - 1}/{len(content)}"
            return self.say(206, content[offset:], **more, Content_Range=span)
        self.say(200, content, **more)

    def do_POST(self) -> None:
        registry = self.server.registry
        registry.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        registry.forms.append(dict(parse_qsl(body.decode())))
        if registry.lie is None or not registry.lie(self):
            self.say(404)

    def say(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        """Answer; a `length` longer than the body cuts the connection after it."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or length is not None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: "LyingRegistry"

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever hangs up on a liar does right."""


@dataclass
class LyingRegistry:
    """What it has, what it was asked and told in forms, and the lie it tells, if any."""

    blobs: Blobs = field(default_factory=Blobs)
    tags: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    lie: Answer | None = None
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def put(self, descriptor: Json, tag: str = "latest") -> str:
        """Give an image a tag; return its digest."""
        self.tags[tag] = str(descriptor["digest"])
        return self.tags[tag]

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, part: str) -> list[dict[str, str]]:
        """Return the headers, their names in lower case, of all requests whose path holds `part`."""
        return [headers for path, headers in self.seen if part in path]


@contextmanager
def lying_registry() -> Iterator[LyingRegistry]:
    """Serve one, in the caller's network namespace."""
    server = _Server(("127.0.0.1", 0), Request)
    server.registry = registry = LyingRegistry(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        registry.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def incompressible(size_bytes: int) -> bytes:
    """Return bytes that gzip makes no shorter."""
    return hashlib.shake_256(b"ramet").digest(size_bytes)
