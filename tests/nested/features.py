"""What an instance can have beside its life, on the daemon's default hypervisor: run in the host within.

Volumes, a limit of its disks, and a wake by traffic, all of them through forks, sleeps and a daemon that was
killed. In one process, and one host: there, each start of a program costs seconds.
"""

import io
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from examples.make_image import busybox_files, make_oci_layout
from ramet.client import ApiError, Client, Endpoint, NotReachable
from ramet.wire_api.auto_standby import AutoStandbyPolicy
from ramet.wire_api.exec import ExecStart
from ramet.wire_api.instances import CreateInstance
from ramet.wire_api.volumes import CreateVolume, VolumeMount

MIB: Final = 1 << 20
RATE_BYTES_PER_S: Final = 4_000_000
SIZE_MIB: Final = 20
BURST_BYTES: Final = 8 * MIB
"""What may come at once: what Firecracker's bucket holds, twice."""
ASKS_ONCE: Final = 40_123
"""A port of ours whose first packets are never sent again: one that is lost is missed."""
RULES: Final = f"""
add table ip once
add chain ip once output {{ type filter hook output priority 0; }}
add rule ip once output tcp sport {ASKS_ONCE} tcp flags & (syn | ack) == syn \
  limit rate over 1/day burst 1 packets drop
"""
TIMEOUT_S: Final = 300.0
"""Beside guests that run, a daemon has taken 120 s to begin on a busy host."""
POLL_S: Final = 0.2
SLOW: Final = "slow"
BLOCK: Final = "/block"
DROP: Final = "busybox sync; echo 3 >/proc/sys/vm/drop_caches"
"""What a guest reads then comes from its disks."""


def say(text: str) -> None:
    print(f"{time.monotonic():.0f} {text}", flush=True)


class Host:
    """A daemon on a folder, and its guests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = Client(Endpoint(str(folder / "s")))

    def serve(self) -> None:
        command = [sys.executable, "-m", "ramet.cli", "serve", "--data-dir", str(self.folder / "data")]
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [*command, "--socket", str(self.folder / "s")], stdout=log, stderr=log
            )
        until(self.answers)
        say("a daemon serves")

    def answers(self) -> bool:
        assert self.daemon.poll() is None
        try:
            self.client.health()
        except NotReachable:
            return False
        return True

    def end(self, number: signal.Signals) -> None:
        self.daemon.send_signal(number)
        self.daemon.wait()

    def boot(self, name: str, **fields: object) -> None:
        body = {"size": "256MB", "overlay_size": "1GB", "vcpus": 1, "cmd": ("sleep", "100000"), **fields}
        made = self.client.create(CreateInstance(name=name, image="box:1", **body))  # type: ignore[arg-type]
        assert made.state == "Running", made
        say(f"{name} runs")

    def sh(self, name: str, script: str) -> str:
        with self.client.exec(name, ExecStart(("sh", "-ec", script), stdin=False)) as connection:
            output = b"".join(data for _, data in connection.output())
        assert connection.exit_code == 0, (name, script, output)
        return output.decode()

    def see(self, name: str, *paths: str) -> list[str]:
        """Return what the disks have, and not the guest's page cache."""
        return self.sh(name, f"{DROP}; cat {' '.join(paths)}").split()

    def delete(self, *names: str) -> None:
        for name in names:
            self.client.delete(name)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(POLL_S)


@contextmanager
def refused(code: str) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.error.code != code:
            raise
    else:
        raise AssertionError(f"it was not refused with {code}")


def archive() -> Iterator[bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        file = tarfile.TarInfo("one")
        file.size = 8
        tar.addfile(file, io.BytesIO(b"weights\n"))
    yield packed.getvalue()


def work_with_volumes(host: Host) -> None:
    """Leave `one` and its child `kid`, which read a volume, and another under an overlay of their own."""
    client = host.client
    client.create_volume_from_archive(CreateVolume("models", 1), archive())
    client.create_volume(CreateVolume("work", 1))
    models = VolumeMount("models", "/models", readonly=True, overlay=True, overlay_size="64MB")
    reading = VolumeMount("work", "/work", readonly=True)
    host.boot("maker", volumes=(models, VolumeMount("work", "/work")))
    host.sh("maker", "cat /models/one >/work/result; echo mine >/models/one")
    with refused("volume_writable"):
        client.fork("maker", "copy")
    with refused("volume_in_use"):
        host.boot("other", volumes=(reading,))
    client.standby("maker")
    client.restore("maker")
    host.sh("maker", "echo more >>/work/result")
    assert host.see("maker", "/models/one", "/work/result") == ["mine", "weights", "more"]
    client.stop("maker")
    client.detach_volume("maker", "work")
    host.delete("maker")
    host.boot("one", volumes=(reading, models))
    host.boot("two", volumes=(reading,))
    for name in ("one", "two"):
        assert host.see(name, "/work/result") == ["weights", "more"]
        assert host.sh(name, "(echo x >/work/x) 2>/dev/null || echo refused") == "refused\n"
    host.delete("two")
    host.sh("one", "echo one >/models/one; busybox sync")
    client.fork("one", "kid")
    assert host.see("kid", "/models/one", "/work/result") == ["one", "weights", "more"]
    host.sh("kid", "echo kid >/models/one")
    for _ in range(2):
        client.standby("kid")
        client.restore("kid")
        see_volumes(host)
    say("volumes are whole")


def see_volumes(host: Host) -> None:
    for name in ("kid", "one"):
        assert host.see(name, "/models/one", "/work/result") == [name, "weights", "more"]


def demand_limited(host: Host, name: str, when: str) -> None:
    """Check that what it writes and reads takes as long as the limit demands; tell how fast it was."""
    for what, command in (
        ("written", f"busybox dd if=/dev/zero of={BLOCK} bs=1M count={SIZE_MIB} conv=fsync"),
        ("read", f"busybox dd if={BLOCK} of=/dev/null bs=1M"),
    ):
        timed = f"read was _ </proc/uptime; {command} 2>/dev/null; read now _ </proc/uptime; echo $was $now"
        was, now = map(float, host.sh(name, f"{DROP}; {timed}").split())
        say(f"{when} {name} has {what} {SIZE_MIB * MIB / 1e6 / (now - was):.2f} MB/s")
        assert now - was >= (SIZE_MIB * MIB - BURST_BYTES) / RATE_BYTES_PER_S


def limit_disks(host: Host) -> None:
    """Leave `slow`, whose disks are limited."""
    host.boot(SLOW, disk_io_bps=f"{RATE_BYTES_PER_S}B/s")
    demand_limited(host, SLOW, "booted")
    # It reads while it is captured, and its requests wait: none of them is lost, in neither.
    reads = f"cat {BLOCK} | busybox md5sum >/dev/shm/sum; echo >/dev/shm/done"
    host.sh(SLOW, f"{DROP}; ({reads}) >/dev/null 2>&1 &")
    host.client.fork(SLOW, "slow-kid")
    for name in (SLOW, "slow-kid"):
        until(lambda name=name: host.sh(name, "ls /dev/shm").split() == ["done", "sum"])  # type: ignore[misc]
        assert host.sh(name, "cat /dev/shm/sum") == host.sh(name, f"cat {BLOCK} | busybox md5sum")
    demand_limited(host, "slow-kid", "forked")
    host.delete("slow-kid")
    host.client.standby(SLOW)
    host.client.restore(SLOW)
    demand_limited(host, SLOW, "awake")


def call(host: Host, port: int) -> None:
    """Have a connection wake `web`, and be answered."""
    assert host.client.get("web").state == "Standby"
    network = host.client.get("web").network
    assert network is not None
    assert network.ip is not None
    with socket.create_connection((network.ip, 80), TIMEOUT_S, ("", port)) as client:
        client.sendall(b"GET /state HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(b"\n\r\nhere\n")
    say("a call was answered")


def wait_asleep(host: Host) -> None:
    until(lambda: bool(host.client.auto_standby_status("web").wake_armed))


def be_called(host: Host) -> None:
    """Leave `web` asleep, after it was woken by a call."""
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    policy = AutoStandbyPolicy(enabled=True, idle_timeout="2s", wake_on_traffic=True)
    server = "busybox mkdir /www; echo here >/www/state; httpd -f -h /www"
    host.boot("web", cmd=("sh", "-c", server), auto_standby=policy)
    wait_asleep(host)
    call(host, ASKS_ONCE)
    wait_asleep(host)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ramet-features-"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    host = Host(folder)
    try:
        busybox = shutil.which("busybox")
        assert busybox is not None
        make_oci_layout(folder / "box", "box:1", *busybox_files(Path(busybox)), {"Env": ["PATH=/bin"]})
        host.serve()
        host.client.import_image(str(folder / "box"), "box:1")
        be_called(host)
        work_with_volumes(host)
        limit_disks(host)
        host.end(signal.SIGKILL)
        host.serve()
        see_volumes(host)
        wait_asleep(host)
        call(host, 0)
        demand_limited(host, SLOW, "left by its daemon")
        host.delete("one", "kid", SLOW, "web")
        for name in ("models", "work"):
            host.client.delete_volume(name)
        until(lambda: not subprocess.check_output(["ip", "link", "show", "type", "tun"]))
        host.end(signal.SIGTERM)
    except BaseException:
        print((folder / "log").read_text(errors="replace")[-4000:], flush=True)
        raise
    print("whole", flush=True)


if __name__ == "__main__":
    main()
