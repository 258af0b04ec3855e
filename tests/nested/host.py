"""A host with KVM where there is none: a Linux inside QEMU, whose emulated processor has AMD's SVM.

The guests' kernel boots as that host's own, `kvm_amd` works in it, and it sees the outer host's files,
read-only under a layer in memory, at the same paths. So the same checkout and programs run there with KVM,
with control groups of version 2, and on a kernel without PAGEMAP_SCAN. What runs in it is emulated, some ten
times slower than outside; guests within are no slower than it.

Now and then an emulated processor loses its timer while a guest runs on it, and the whole host within stands
still for good, whatever runs there. Its kernel notices and panics, and all begins anew: nothing is kept.
"""

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.boot.initramfs import MODULES_FOLDER, ORDER_FILE, CpioWriter
from ramet.boot.kernel import KernelSource, modules_in_order, read_module, unpack_package

HERE: Final = Path(__file__).parent
PROJECT: Final = HERE.parent.parent
VIRTIOFSD: Final = Path("/usr/lib/qemu/virtiofsd")  # QEMU's own, of Debian's qemu-system-common.
BUSYBOX: Final = Path("/bin/busybox")
MODULES: Final = ("virtio_pci", "virtiofs", "overlay", "virtio_rng")
MEMORY_MIB: Final = 6144
CPU: Final = "EPYC,+svm,+npt"
FOLDERS: Final = ("bin", "dev", "proc", "sys", "outer", "memory", "root", MODULES_FOLDER)
VARIABLES: Final = ("RAMET_KERNEL_PACKAGE", "RAMET_KITS_DIR", "RAMET_FIRECRACKER", "RAMET_CLOUD_HYPERVISOR")
EXIT_STATUS: Final = "exit status within: "
ATTEMPTS_MAX: Final = 3
STALL_S: Final = 40
"""For how long a processor may get nowhere; on the busiest of hosts a live one takes a tenth of that."""
PANIC_WHEN_STALLED: Final = (
    f"softlockup_panic=1 watchdog_thresh={STALL_S // 2} "
    f"sysctl.kernel.panic_on_rcu_stall=1 rcupdate.rcu_cpu_stall_timeout={STALL_S}"
)
STALLS: Final = ("not syncing: softlockup", "not syncing: RCU Stall")


class NestedFailed(Exception):
    """The host within ended without saying how the command did."""


class HostStalled(NestedFailed):
    """A processor of the host within stood still."""


def run_within(
    command: Sequence[str],
    *,
    kernel_package: Path,
    timeout_s: float,
    say: Callable[[str], None],
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run `command` in the project's folder in a host within; returns its exit status.

    In a host that stood still it is run again from the start.

    Args:
        kernel_package: a .deb with the kernel of the host within.
        timeout_s: for all of it.
        say: is told each line that the command prints.
        variables: of its environment, beside those that say where ramet's parts are.

    Raises:
        NestedFailed: the host within failed, stood still every time, or it took too long.
    """
    until = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(prefix="ramet-within-") as work:
        folder = Path(work)
        source = unpack_package(kernel_package, folder / "kernel")
        told = {name: os.environ[name] for name in VARIABLES if name in os.environ} | dict(variables or {})
        initramfs = folder / "initramfs"
        initramfs.write_bytes(_initramfs(source, command, told))
        for left in reversed(range(ATTEMPTS_MAX)):
            try:
                with _outer_files(folder) as files:
                    return _boot(source.vmlinuz, initramfs, files, folder, until - time.monotonic(), say)
            except HostStalled as stalled:
                if left == 0:
                    raise
                say(f"once more: {stalled}")
    raise AssertionError("unreachable")


def _initramfs(source: KernelSource, command: Sequence[str], variables: Mapping[str, str]) -> bytes:
    archive = CpioWriter()
    for name in FOLDERS:
        archive.add_folder(name)
    modules = modules_in_order(source.modules, MODULES)
    archive.add_file(ORDER_FILE, "".join(f"{path.name}\n" for path in modules).encode())
    for path in modules:
        archive.add_file(f"{MODULES_FOLDER}/{path.name}", read_module(path))
    archive.add_file("bin/busybox", BUSYBOX.read_bytes(), executable=True)
    archive.add_file("init", (HERE / "stage1.sh").read_bytes(), executable=True)
    archive.add_file("stage2.sh", (HERE / "stage2.sh").read_bytes())
    words = {
        "FOLDER": str(PROJECT),
        "MODULES": str(source.modules.parent),
        "OUTER_PATH": os.environ["PATH"],
        "COMMAND": shlex.join(command),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in words.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    archive.add_file("command", "".join(f"{line}\n" for line in lines).encode())
    return archive.finish()


@contextmanager
def _outer_files(folder: Path) -> Iterator[Path]:
    """Serve this host's files inside; yields the socket to be asked at."""
    path = folder / "files.sock"
    path.unlink(missing_ok=True)
    options = ["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-f"]
    with socket.socket(socket.AF_UNIX) as listener, (folder / "virtiofsd.log").open("wb") as log:
        listener.bind(str(path))
        listener.listen()
        server = subprocess.Popen(
            [str(VIRTIOFSD), f"--fd={listener.fileno()}", *options],
            pass_fds=(listener.fileno(),),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield path
    finally:
        server.terminate()
        server.wait()


def _boot(
    kernel: Path, initramfs: Path, files: Path, folder: Path, timeout_s: float, say: Callable[[str], None]
) -> int:
    console = folder / "console.log"
    memory = f"{MEMORY_MIB}M"
    machine = [
        *("-machine", "q35,accel=tcg,memory-backend=memory", "-cpu", CPU, "-smp", str(os.cpu_count() or 1)),
        *("-m", memory, "-object", f"memory-backend-memfd,id=memory,size={memory},share=on"),
        *("-chardev", f"socket,id=files,path={files}"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=outer", "-device", "virtio-rng-pci"),
        *("-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", f"console=ttyS0 panic=-1 loglevel=4 mitigations=off {PANIC_WHEN_STALLED}"),
    ]
    timed = ["timeout", "--kill-after=5", str(timeout_s), "qemu-system-x86_64", *machine]
    status: int | None = None
    with (
        (folder / "qemu.log").open("wb") as log,
        subprocess.Popen(
            timed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, errors="replace"
        ) as host,
    ):
        assert host.stdout is not None
        for line in map(str.rstrip, host.stdout):
            if line.startswith(EXIT_STATUS):
                status = int(line.removeprefix(EXIT_STATUS))
            else:
                say(line)
    if status is None:
        words = console.read_text(errors="replace") if console.exists() else "no word"
        kind = HostStalled if any(stall in words for stall in STALLS) else NestedFailed
        raise kind(
            f"the host within ended or took longer than {timeout_s:.0f} s; its last words:\n{words[-4000:]}"
        )
    return status


def why_not() -> str | None:
    """Return what this host lacks for a host within, None if nothing."""
    for program in (str(VIRTIOFSD), str(BUSYBOX), "qemu-system-x86_64"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    return None
