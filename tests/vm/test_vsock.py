"""The guest's side of a vsock, on a real kernel: QEMU has one here, and neither serial ports nor serials.

Its other end is `vhost-device-vsock` of the rust-vmm project, on the path or where RAMET_VHOST_DEVICE_VSOCK
says; on the host's side it has the socket that Firecracker has.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from ramet.boot.kit import BootKit, prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, native_program
from ramet.guest.channel import open_channel
from ramet.guest.dial import dial
from ramet.wire.boot_config import BootConfig
from ramet.wire.vsock import OUTPUT_PORT
from tests.vm.conftest import KERNELS
from tests.vmm.test_qemu import make_root

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

PROGRAM = os.environ.get("RAMET_VHOST_DEVICE_VSOCK") or shutil.which("vhost-device-vsock")
DISKS = {"root": "on", "overlay": "off", "config": "on"}
SCRIPT = "echo begun; read line </tmp/end"


def write_disks(folder: Path) -> None:
    make_root(folder).rename(folder / "root.img")
    subprocess.run(["mkfs.ext4", "-q", folder / "overlay.img", "64M"], check=True)
    config = BootConfig(
        argv=("/bin/sh", "-c", f"mkfifo /tmp/end; {SCRIPT}"),
        env={},
        cwd="/tmp",
        user="",
        hostname="h",
        machine_id="0" * 32,
        clock_ns=time.time_ns(),
        entropy=bytes(64),
    )
    (folder / "config.img").write_bytes(config.to_disk().ljust(64 << 10, b"\0"))


def command(folder: Path, kit: BootKit) -> list[str]:
    arguments = ["qemu-system-x86_64", "-M", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max"]
    arguments += ["-m", "256M", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"]
    arguments += ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]
    arguments += ["-kernel", str(kit.kernel), "-initrd", str(kit.initramfs)]
    arguments += ["-append", "console=ttyS0 quiet reboot=k panic=-1 net.ifnames=0 ipv6.disable=1"]
    arguments += [
        "-chardev",
        f"file,id=console,path={folder}/console.log",
        "-device",
        "isa-serial,chardev=console",
    ]
    for name, read_only in DISKS.items():
        arguments += ["-drive", f"file={folder}/{name}.img,format=raw,if=none,id={name},readonly={read_only}"]
        arguments += ["-device", f"virtio-blk-pci,drive={name}"]
    arguments += ["-chardev", f"socket,id=vsock,path={folder}/vhost.sock"]
    return [*arguments, "-device", "vhost-user-vsock-pci,chardev=vsock"]


def start(stack: ExitStack, argv: list[str]) -> "subprocess.Popen[bytes]":
    process = stack.enter_context(subprocess.Popen(argv))
    stack.callback(process.kill)
    return process


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator["subprocess.Popen[bytes]"]:
    if PROGRAM is None:
        pytest.skip("needs vhost-device-vsock")
    packages = sorted(KERNELS.glob("*.deb"))
    kit = prepare_kit(
        tmp_path / "kits",
        guest_program=native_program(GUEST_PROGRAM),
        kernel_package=packages[-1] if packages else None,
    )
    write_disks(tmp_path)
    device = f"guest-cid=3,socket={tmp_path}/vhost.sock,uds-path={tmp_path}/agent.vsock"
    with ExitStack() as stack:
        start(stack, [PROGRAM, "--vm", device])
        with anyio.fail_after(30):
            while not (tmp_path / "vhost.sock").exists():
                await anyio.lowlevel.checkpoint()
        yield start(stack, command(tmp_path, kit))


async def test_the_agent_and_the_output_are_behind_the_vsock(
    qemu: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    path = tmp_path / "agent.vsock"
    for _ in range(2):  # The second connection is served when the first has ended.
        async with await open_channel(path, timeout_s=60) as channel:
            await channel.freeze()
            assert (await channel.health()).workload.state == "frozen"
            await channel.thaw()
    with await dial(path, OUTPUT_PORT) as connection, anyio.fail_after(60):
        loop, output = asyncio.get_running_loop(), b""
        while output != b"begun\n":
            output += await loop.sock_recv(connection, 4096)
        async with await open_channel(path, timeout_s=60) as channel:
            await channel.shutdown()
        assert await loop.sock_recv(connection, 4096) == b""
    assert await anyio.to_thread.run_sync(lambda: qemu.wait(30)) == 0
    assert b'RAMET-GUEST exit {"code":null,"signal":15' in (tmp_path / "console.log").read_bytes()
