"""The first seeds of every corpus, made from honest input; `python -m fuzz.seeds` writes the missing ones."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, Final

from fuzz.targets import CORPORA
from ramet.wire.boot_config import BootConfig
from ramet.wire.frames import Frame, FrameType, credit, encode

_DIGEST: Final = "sha256:" + "ab" * 32
_MAC: Final = "02:00:00:00:00:07"
_NETWORK: Final = {
    "mac": _MAC,
    "ip": "10.100.0.7",
    "prefix_length": 16,
    "gateway": "10.100.0.1",
    "dns": ["9.9.9.9"],
}
_IDENTITY: Final = {
    "hostname": "web",
    "machine_id": "0" * 32,
    "clock_ns": 5,
    "entropy": "ff00",
    "network": _NETWORK,
}
_WORKLOAD: Final = {"state": "running", "pid": 7, "code": None, "signal": None, "message": ""}
_SIZE: Final = {"rows": 24, "cols": 80}
_REPORT: Final = {
    "link_target": "/a",
    "mode": 0o644,
    "size_bytes": 7,
    "uid": 1,
    "gid": 2,
    "mtime_ns": 5,
    "error": None,
}
_CONFIG: Final = {
    "os": "linux",
    "architecture": "amd64",
    "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
    "config": {
        "Entrypoint": ["/bin/sh"],
        "Cmd": "echo",
        "Env": ["PATH=/bin"],
        "WorkingDir": "/srv",
        "User": "1:2",
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"a": "b"},
        "StopSignal": "SIGINT",
        "Volumes": {"/v": {}},
    },
}
_DESCRIPTOR: Final = {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": _DIGEST,
    "size": 12,
    "annotations": {"org.opencontainers.image.ref.name": "latest"},
    "platform": {"os": "linux", "architecture": "amd64", "variant": "v1"},
}
_MANIFEST: Final = {
    "schemaVersion": 2,
    "config": {**_DESCRIPTOR, "mediaType": "application/vnd.oci.image.config.v1+json"},
    "layers": [{**_DESCRIPTOR, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}],
}
_RECORD: Final = {
    "spec": {
        "image": "img",
        "image_digest": _DIGEST,
        "hypervisor": "qemu",
        "vcpu_count": 2,
        "memory_bytes": 1 << 30,
        "overlay_bytes": 10 << 30,
        "env": {"A": "b"},
        "entrypoint": None,
        "cmd": ["x"],
        "has_network": True,
        "tags": {},
    },
    "identity": {"id": "a" * 24, "name": "web", "slot": 7, "machine_id": "0" * 32, "created_at": 1.5},
    "state": "Running",
    "layer": None,
    "runtime": {"pid": 5, "start_ticks": 6, "boot_id": "b", "driver": {}},
    "exit": {"code": None, "signal": 9, "message": ""},
}


def text(value: object, head: int | None = None) -> bytes:
    """Return `value` as JSON, behind the byte `head`."""
    return (b"" if head is None else bytes([head])) + json.dumps(value).encode()


def tar(*members: tuple[str, bytes, bytes, str], pax: dict[str, str] | None = None) -> bytes:
    """Return an archive of members (name, type, content, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname, info.mode = kind, len(content), target, 0o755
            info.pax_headers = dict(pax or {})
            archive.addfile(info, io.BytesIO(content))
    whole = out.getvalue().rstrip(b"\0")
    return whole + bytes(-len(whole) % 512 + 1024)  # Not padded to 10 KiB: seeds are kept small.


def _layers(first: bytes, second: bytes = b"") -> bytes:
    return len(first).to_bytes(2) + first + second


def _frames(*sent: Frame) -> bytes:
    return b"".join(map(encode, sent))


def make() -> dict[str, list[bytes]]:
    """Return honest inputs by target."""
    hello = Frame(FrameType.HELLO, 0, text({"version": 1, "nonce": "0" * 32, "streams": "kill"}))
    to_guest = _frames(
        hello,
        Frame(FrameType.REQUEST, 1, text({"op": "health"})),
        Frame(FrameType.STDIN, 1, b"in"),
        Frame(FrameType.STDIN_EOF, 1),
        Frame(FrameType.SIGNAL, 1, text({"signal": 9})),
        credit(1, 99),
    )
    answers = _frames(
        Frame(FrameType.RESPONSE, 1, text({"ok": {"workload": _WORKLOAD, "uptime_s": 1.5}})),
        Frame(FrameType.RESPONSE, 2, text({"error": {"code": "bad_request", "message": "no"}})),
        Frame(FrameType.STDOUT, 3, b"out"),
        Frame(FrameType.EXIT, 3, text({"code": 0, "signal": None})),
        Frame(FrameType.EVENT, 0, text({"event": "workload_exited", "code": 0, "signal": None})),
    )
    to_host = _frames(Frame(FrameType.HELLO_ACK, 0, b"{}")) + answers
    kinds: list[Any] = [
        {"version": 1, "nonce": "0" * 32, "streams": "keep"},
        {"version": 1, "nonce": "0" * 32, "agent": "0.1.0", "workload": _WORKLOAD},
        _WORKLOAD,
        _NETWORK,
        _IDENTITY,
        {"mac": _MAC, "ip": "10.100.0.7", "hostname": "web", "ran_before_identity": False},
        {"workload": _WORKLOAD, "uptime_s": 1.5},
        {"argv": ["sh"], "env": {"A": "b"}, "cwd": "/", "user": "1", "timeout_s": 1.5, "stdin": True},
        {"code": 0, "signal": None, "timed_out": False},
        _SIZE,
        {**dict.fromkeys(("exists", "is_dir", "is_file", "is_symlink"), True), **_REPORT},
        {"ok": {"a": 1}},
        {"event": "workload_exited", "code": 0, "signal": None, "message": ""},
    ]
    config = BootConfig(("/bin/sh",), {"A": "b"}, "/", "", "web", "0" * 32, 5, b"\xff")
    return {
        "frames": [b"\0\3" + to_guest, b"\1\0" + to_host, b"\0\x11" + to_guest[:30] + to_guest],
        "messages": [text(kind, head) for head, kind in enumerate(kinds)] + [b"\x0d\0\0\0\1"],
        "boot_config": [config.to_disk(), _boot_disk({**_IDENTITY, "argv": ["/x"], "overlay": "disk"})],
        "channel": [answers, answers[:40], _frames(Frame(FrameType.RESPONSE, 1, b"x")), b"\0\4"],
        "documents": [text({"manifests": [_DESCRIPTOR]}, 0), text(_MANIFEST, 1), text(_CONFIG, 2)],
        "reference": [
            b"alpine",
            b"alpine:3.19",
            b"localhost:5000/team/app@" + _DIGEST.encode(),
            b"[::1]:80/a__b/c-d.e:T",
        ],
        "units": [b"512MB", b"1.5 GiB", b"4096", b"1h30m", b"250ms", b"0"],
        **_image_seeds(),
        **_host_seeds(),
        **_rust_seeds(to_guest, kinds),
    }


def _rust_seeds(to_guest: bytes, kinds: list[Any]) -> dict[str, list[bytes]]:
    hello, identity, command = kinds[0], kinds[4], kinds[7]
    asked: list[object] = [hello, {"op": "health"}, command, {"timeout_s": 1.5}, {"signal": 9}, identity]
    boot = {**identity, "argv": ["/x"], "env": {"A": "b"}, "cwd": "/", "user": "", "overlay": "disk"}
    mapping = {"base_host_virt_addr": 8192, "size": 4096, "offset": 0, "page_size": 4096}
    return {
        "guest_frames": [b"\3" + to_guest, b"\xff" + to_guest[:30] + to_guest],
        "guest_messages": [
            *(text(message, head) for head, message in enumerate([*asked, boot])),
            b"\7na\xc3\xaf",
            text({"exec": 1, **_SIZE}, 8),
            text({"path": "/a", "follow_links": True}, 9),
            text({"path": "/a", "keep_owner": True}, 10),
            text({**command, "tty": _SIZE}, 2),
        ],
        "guest_archive": _copied_seeds(),
        "pager_requests": [
            text({"op": "health"}),
            text({"op": "open_session", "id": "a-1", "base": "/memory", "size": 4096}),
            text({"op": "close_session", "id": "a-1"}),
            text(
                {
                    "op": "open_session",
                    "id": "a",
                    "base": "memory",
                    "size": 8192,
                    "format": "packed",
                    "overlays": [{"offset": 4096, "path": "/page"}],
                    "working_set": "auto",
                }
            ),
        ],
        "pager_handshake": [
            text([mapping, {**mapping, "base_host_virt_addr": 0}]),
            text({"mappings": [mapping]}),
        ],
        "pager_packed": [_packed((0, 3, 1), (1, 4, 0xFFFF)), _packed()],
    }


def _packed(*entries: tuple[int, int, int]) -> bytes:
    """Return packed memory of 128 KiB with a table of (window, size of its frame, pages), without content."""
    table = b"".join(struct.pack("<IIH", *entry) for entry in entries)
    tail_bytes = len(table) + 28
    footer = struct.pack("<IQII8s", len(entries), 1 << 17, zlib.crc32(table), tail_bytes, b"RAMETMP1")
    header = struct.pack("<II", 0x184D2A5E, tail_bytes)
    return bytes(sum(size for _, size, _ in entries)) + header + table + footer


def _copied_seeds() -> list[bytes]:
    """Return archives as `ramet cp` sends and gets them, behind a byte."""
    tree = tar(
        ("t", tarfile.DIRTYPE, b"", ""),
        ("t/f", tarfile.REGTYPE, b"content", ""),
        ("t/s", tarfile.SYMTYPE, b"", "f"),
        ("t/h", tarfile.LNKTYPE, b"", "t/f"),
        ("t/p", tarfile.FIFOTYPE, b"", ""),
    )
    named = tar(("a/" * 60 + "f", tarfile.REGTYPE, b"x", ""), pax={"mtime": "1.5", "uid": "7", "size": "1"})
    leading_out = tar(("../canary", tarfile.REGTYPE, b"x", ""), ("out/canary", tarfile.REGTYPE, b"x", ""))
    return [b"\0" + tree, b"\1" + named, b"\3" + leading_out, b"\0" + _sparse()]


def _sparse() -> bytes:
    return tar(
        ("f", tarfile.REGTYPE, b"2\n0\n1\n8\n1\n".ljust(512, b"\0") + b"xy", ""),
        pax={
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "s",
            "GNU.sparse.realsize": "9",
        },
    )


def _boot_disk(message: object) -> bytes:
    payload = text({"env": {}, "cwd": "/", "user": "", **dict(message)})  # type: ignore[call-overload]
    return b"RAMETCF1" + len(payload).to_bytes(4) + payload


def _image_seeds() -> dict[str, list[bytes]]:
    first = tar(
        ("d", tarfile.DIRTYPE, b"", ""),
        ("d/f", tarfile.REGTYPE, b"content", ""),
        ("s", tarfile.SYMTYPE, b"", "../d"),
        ("h", tarfile.LNKTYPE, b"", "d/f"),
        ("p", tarfile.FIFOTYPE, b"", ""),
        ("c", tarfile.CHRTYPE, b"", ""),
    )
    second = tar(
        ("d/.wh.f", tarfile.REGTYPE, b"", ""),
        ("d/.wh..wh..opq", tarfile.REGTYPE, b"", ""),
        ("s/canary", tarfile.REGTYPE, b"x", ""),
    )
    attributes = tar(
        ("f", tarfile.REGTYPE, b"x", ""), pax={"SCHILY.xattr.user.a": "b", "mtime": "1.5", "uid": "7"}
    )
    docker = tar(
        ("config.json", tarfile.REGTYPE, text(_CONFIG), ""),
        ("l/layer.tar", tarfile.REGTYPE, b"layer", ""),
        (
            "manifest.json",
            tarfile.REGTYPE,
            text([{"Config": "config.json", "RepoTags": ["a:b"], "Layers": ["l/layer.tar"]}]),
            "",
        ),
    )
    oci = tar(
        ("oci-layout", tarfile.REGTYPE, text({"imageLayoutVersion": "1.0.0"}), ""),
        ("index.json", tarfile.REGTYPE, text({"schemaVersion": 2, "manifests": [_DESCRIPTOR]}), ""),
        ("blobs/sha256/" + "ab" * 32, tarfile.REGTYPE, b"{}", ""),
    )
    return {
        "layer": [
            _layers(first, second),
            _layers(gzip.compress(first, mtime=0), second),
            _layers(attributes),
            _layers(_sparse()),
        ],
        "copied": _copied_seeds(),
        "archive": [docker, oci, gzip.compress(oci, mtime=0)],
    }


def _host_seeds() -> dict[str, list[bytes]]:
    stored = {
        "schema": 1,
        "digest": _DIGEST,
        "size_bytes": 4096,
        "created_at": "2026-01-02T00:00:00+00:00",
        "layers": [_DIGEST],
        "config": {"entrypoint": ["/x"], "cmd": [], "env": [], "working_dir": "/", "os": "linux"},
    }
    instance = {"id": "a", "name": "web", "image": "i", "state": "Running", "created_at": "2026"}
    return {
        "catalog": [
            text(stored, 0),
            text({"schema": 1, "tags": {"a": _DIGEST}}, 1),
            text(_RECORD, 2),
            b"\3SQLite format 3\0" + bytes(100),
            b"\3",
        ],
        "http1": [
            b"\3HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b'\5HTTP/1.1 200 OK\r\nA: b\r\n\r\ndata: "line"\n\n: still here\n\ndata: "x"\n\n',
            b"\0HTTP/1.1 204 No Content\r\n\r\n",
        ],
        "registry": [
            b'\0Bearer realm="https://t.example/token",service="r.example",scope="a"\0{"token": "t"}',
            b'\0Basic realm="r", Bearer realm="https://t.example/"\0{"access_token": "t"}',
            text({"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}}}, 1),
            text({"auths": {"https://r.example/v1/": {"username": "u", "password": "p"}}}, 1),
            text({"credHelpers": {"r.example": "none-such"}, "credsStore": "none-such"}, 1),
            text({"auths": {"r.example": {"identitytoken": "i", "registrytoken": ""}}}, 1),
        ],
        "exec_messages": [
            text({"command": ["sh"], "env": {"A": "b"}, "cwd": "/", "timeout": 1.5, "user": "1"}),
            text({"command": ["sh"], "tty": True, "rows": 24, "cols": 80, "streams": "separate"}),
        ],
        "codec": [
            text({**instance, "network": {"enabled": True}, "timings_ms": {"total": 1.5}}),
            text({"forks": [{"name": "a", "instance": instance}], "succeeded": 1}),
        ],
        "settings": [
            b"data_dir: /var/lib/ramet\nlisten: 127.0.0.1:8080\njwt_secret: " + b"x" * 32,
            b"network:\n  subnet_cidr: 10.100.0.0/16\n  dns_servers: [9.9.9.9]\n"
            b"  allow_host_ports: [udp/53]\n",
        ],
    }


def write(folder_of: dict[str, Path]) -> int:
    """Write the seeds that are missing; return how many."""
    count = 0
    for name, contents in make().items():
        folder = folder_of[name]
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            file = folder / f"seed-{number:02}"
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
                count += 1
    return count


if __name__ == "__main__":
    print(f"{write({name: CORPORA / name for name in make()})} seeds written")
