"""Debian's own registry on loopback, and a relay before it that counts, cuts and holds."""

import http.client
import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.lying_registry import Request, lying_registry

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
PIECE_BYTES = 64 << 10
_DIGEST = re.compile(r"/blobs/(sha256:[0-9a-f]{64})")


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Serve what lies in `folder`, in the caller's network namespace; give its "host:port"."""
    folder.mkdir(exist_ok=True)
    authority = f"127.0.0.1:{free_port()}"
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/store}}}}\n"
        f"http: {{addr: {authority}}}\nlog: {{level: error}}\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while not _answers(authority):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(POLL_INTERVAL_S)
        yield authority
    finally:
        server.terminate()
        server.wait(START_TIMEOUT_S)


def push(layout: Path, name: str) -> None:
    """Put the image of an OCI layout into a registry that speaks plain HTTP, compressed on its way."""
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    command += [f"oci:{layout}", f"docker://{name}"]
    subprocess.run(command, check=True, env={**os.environ, "HOME": str(layout.parent)})


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(authority: str) -> bool:
    with closing(http.client.HTTPConnection(authority, timeout=10)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except ConnectionError:
            return False


@dataclass
class Relay:
    """Passes requests on to a registry.

    Attributes:
        authority: where it listens.
        cut_bytes: each answer with a blob is cut off after so many; None cuts none.
        hold_bytes: of each blob, after which nothing more comes until `released`.
        served: bytes of each blob that were sent, by digest.
        offsets: where each request for a blob began, by digest.
    """

    upstream: str
    authority: str = ""
    cut_bytes: int | None = None
    hold_bytes: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    served: Counter[str] = field(default_factory=Counter)
    offsets: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Begin to count anew, and pass on everything as it is."""
        self.cut_bytes = self.hold_bytes = None
        self.released = threading.Event()
        self.served.clear()
        self.offsets.clear()

    def __call__(self, request: Request) -> bool:
        with closing(http.client.HTTPConnection(self.upstream, timeout=60)) as connection:
            headers = {key: value for key, value in request.headers.items() if key.lower() != "host"}
            connection.request("GET", request.path, headers=headers)
            answer = connection.getresponse()
            request.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("date", "server", "connection", "transfer-encoding"):
                    request.send_header(key, value)
            request.end_headers()
            found = _DIGEST.search(request.path)
            if found is None or answer.status not in (200, 206):
                request.wfile.write(answer.read())
            else:
                self._pass(found[1], answer, request)
        return True

    def _pass(self, digest: str, answer: http.client.HTTPResponse, request: Request) -> None:
        span = re.match(r"bytes ([0-9]+)-", answer.getheader("Content-Range") or "")
        with self._lock:
            self.offsets.setdefault(digest, []).append(int(span[1]) if span else 0)
        left_bytes = self.cut_bytes
        while piece := answer.read(PIECE_BYTES if left_bytes is None else min(PIECE_BYTES, left_bytes)):
            if self.hold_bytes is not None and self.served[digest] >= self.hold_bytes:
                self.released.wait()
                request.close_connection = True
                return
            request.wfile.write(piece)
            with self._lock:
                self.served[digest] += len(piece)
            if left_bytes is not None:
                left_bytes -= len(piece)
        request.close_connection = True


@contextmanager
def relay(upstream: str) -> Iterator[Relay]:
    """Serve a relay to `upstream`, in the caller's network namespace."""
    with lying_registry() as server:
        found = Relay(upstream, server.authority)
        server.lie = found
        try:
            yield found
        finally:
            found.released.set()
