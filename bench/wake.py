"""How long who connects to a sleeper waits: ./run bench wake [OPTIONS]

One real guest with a web server sleeps, with its memory on the disk, and is woken by a TCP connection, again
and again; in a network namespace and with a daemon of its own. The clock starts before connect() and is read
when that returns, and when the first byte of an answer is there. `retransmitted` counts the connections whose
first packet had to be sent again: it is to be 0. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # For `tests`: its bench is what is measured on.

import anyio
import anyio.lowlevel
import structlog

from ramet.core.auto_standby import IDLE_TIMEOUT_S_MAX, AutoStandby
from ramet.core.spec import InstanceSpec
from ramet.daemon.config import Settings
from ramet.daemon.wiring import Running, running
from tests.effects.world import performer_of
from tests.net.namespaces import own_namespace
from tests.vm.images import HTTP_PORT, IMAGE, write_image
from tests.vm.site import vmm_pids

MIB = 1 << 20
TCP_INFO_TOTAL_RETRANS_AT = 100  # linux/tcp.h: struct tcp_info, tcpi_total_retrans
WAKE_COUNT = 20
REST_S = 0.2
"""Between its sleep and the connection: what the sleep left to do is done."""
REQUEST = b"GET /alive HTTP/1.0\r\n\r\n"
BUDGET_S = 0.6
NAME = "napping"


@dataclass
class Figures:
    """What was measured. Times in seconds; phases in milliseconds."""

    connected_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    retransmitted: int = 0
    phases_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> dict[str, object]:
        phases = {name: round(statistics.median(times), 1) for name, times in self.phases_ms.items()}
        return {
            "wakes": len(self.connected_s),
            "connected_s": _spread(self.connected_s),
            "answered_s": _spread(self.answered_s),
            "retransmitted": self.retransmitted,
            "phases_ms": phases,
        }


def _spread(times_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {
        "p50": round(statistics.median(ordered), 3),
        "p95": round(p95, 3),
        "max": round(ordered[-1], 3),
    }


async def measure(parts: Running, spec: InstanceSpec, wake_count: int, figures: Figures) -> None:
    """Have a guest sleep and be woken so many times."""
    made = await parts.fleet.create(NAME, spec)
    assert made.ip is not None, "it has a network"
    await _serves(made.ip)
    for index in range(wake_count + 1):
        await parts.fleet.standby(NAME)
        while not parts.keepers.idle.status(NAME).traffic.is_armed:
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(REST_S)
        connected_s, answered_s, is_repeated = await _ask(made.ip)
        phases = await _phases(parts)
        if index == 0:
            continue  # The first finds nothing in the host's caches.
        figures.connected_s.append(connected_s)
        figures.answered_s.append(answered_s)
        figures.retransmitted += is_repeated
        for name, took_ms in phases.items():
            figures.phases_ms[name].append(took_ms)
    await parts.fleet.delete(NAME)


async def _ask(ip: str) -> tuple[float, float, bool]:
    """Connect and ask; return when that was done, when the answer began, and if it was asked again."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        since = time.monotonic()
        await loop.sock_connect(client, (ip, HTTP_PORT))
        connected_s = time.monotonic() - since
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        is_repeated = struct.unpack_from("=I", info, TCP_INFO_TOTAL_RETRANS_AT)[0] > 0
        await loop.sock_sendall(client, REQUEST)
        assert await loop.sock_recv(client, 1) == b"H", "the guest does not speak HTTP"
        return connected_s, time.monotonic() - since, is_repeated


async def _phases(parts: Running) -> Mapping[str, float]:
    """Return what the wake consisted of, once it is over."""
    while parts.fleet.get(NAME).record.runtime is None:
        await anyio.lowlevel.checkpoint()
    return performer_of(parts.fleet).timings_ms(parts.fleet.get(NAME).record.id)


async def _serves(ip: str) -> None:
    while True:
        try:
            await _ask(ip)
        except ConnectionRefusedError:
            await anyio.sleep(0.05)
        else:
            return


async def main(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    figures, load1 = Figures(), os.getloadavg()[0]
    try:
        write_image(folder / "image")
        async with running(Settings(data_dir=folder / "data")) as parts:
            image = await parts.images.import_path(folder / "image", name=IMAGE)
            spec = InstanceSpec(
                image=IMAGE,
                image_digest=image.digest,
                hypervisor=options.hypervisor,
                vcpu_count=1,
                memory_bytes=options.size * MIB,
                overlay_bytes=1024 * MIB,
                auto_standby=AutoStandby(False, IDLE_TIMEOUT_S_MAX, wakes_on_traffic=True),
            )
            await measure(parts, spec, options.wakes, figures)
    finally:
        for pid in vmm_pids(folder):
            os.kill(pid, 9)
        shutil.rmtree(folder)
    found = figures.summary()
    if not options.json:
        _print(found)
    load = {"before": load1, "after": os.getloadavg()[0]}
    host = {"size_mib": options.size, "budget_s": BUDGET_S, "cores": os.cpu_count(), "load1": load}
    print(json.dumps({**found, **host}))


def _print(found: Mapping[str, object]) -> None:
    for name, value in found.items():
        print(f"{name:14} {value}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench wake", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wakes", type=int, default=WAKE_COUNT, help="default %(default)s")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="memory (default %(default)s)")
    parser.add_argument("--hypervisor", default="qemu", help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    if options.wakes < 1:
        parser.error("--wakes: at least 1")
    if os.geteuid() != 0:
        parser.error("it makes network interfaces and VMs: run it as root")
    return options


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asked = parse()
    with own_namespace():
        asyncio.run(main(asked))
