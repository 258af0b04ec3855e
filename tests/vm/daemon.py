"""A daemon as a process of its own, and what lies on the host because of it."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ramet.client import Client, Endpoint, NotReachable
from ramet.disks.qcow2 import read_backing
from ramet.wire_api.exec import ExecStart
from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import own_namespace, run_ip
from tests.vm.images import IMAGE, write_image
from tests.vm.mortals import MortalDaemon, Mortals
from tests.vm.site import vmm_pids
from tests.vm.wire import nft

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.05
TABLE = "ramet_rmtbr0"


@dataclass
class Leftovers:
    """What is there, by kind. In a quiet moment it is what the records say, and nothing more."""

    vmm_count: int
    tap_count: int
    admitted_count: int
    folder_count: int
    record_count: int
    journal_count: int
    strange_layers: set[str] = field(default_factory=set)
    deleted_open: set[str] = field(default_factory=set)
    captures_held: set[str] = field(default_factory=set)


class Daemon:
    """`ramet serve` on `folder`, in the caller's network namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        socket = folder / "api.sock"
        self._arguments = ["serve", "--data-dir", str(self.data), "--socket", str(socket)]
        self.client = Client(Endpoint(str(socket)))
        self._process: subprocess.Popen[bytes] | MortalDaemon | None = None
        self._mortals: Mortals | None = None

    def start(
        self,
        *,
        is_mortal: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, perhaps one that is to kill itself (`dying_daemon`), and wait until it answers.

        `arguments` are more of `ramet serve`; `environment` comes before this process's own.
        """
        if is_mortal:
            assert not environment
            self._mortals = self._mortals or Mortals(self.folder)
            self._process = self._mortals.start([*self._arguments, *arguments])
        else:
            with (self.folder / "daemon.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ramet.cli", *self._arguments, *arguments],
                    cwd=ROOT,
                    env={**os.environ, **(environment or {})},
                    stdout=log,
                    stderr=log,
                )
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.client.health()
                return
            except NotReachable:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < until, self.log()
                time.sleep(POLL_INTERVAL_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it, wherever it is."""
        assert self._process is not None
        self._process.kill()
        self.wait_killed()

    def wait_killed(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait until it has been killed, by whomever.

        Raises:
            subprocess.TimeoutExpired: it goes on running.
        """
        assert self._process is not None
        assert self._process.wait(timeout_s) == -signal.SIGKILL, self.log()
        self._process = None

    def stop(self) -> None:
        """End it as an operator does; does nothing if it does not run."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(END_TIMEOUT_S) == 0, self.log()
            self._process = None

    def end(self) -> None:
        """Have it be gone, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._mortals is not None:
            self._mortals.close()
            self._mortals = None

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text()[-4000:]

    @property
    def log_bytes(self) -> int:
        """How long its log is."""
        return (self.folder / "daemon.log").stat().st_size

    def wait_for_log(self, event: str, *, after: int) -> None:
        """Wait until the daemon has logged `event` behind the first `after` bytes of its log."""
        until = time.monotonic() + END_TIMEOUT_S
        while event.encode() not in (self.folder / "daemon.log").read_bytes()[after:]:
            assert time.monotonic() < until, self.log()
            time.sleep(POLL_INTERVAL_S)

    def sh(self, name: str, script: str) -> str:
        """Run a shell script in a guest and return its output; it must succeed."""
        output = b""
        with self.client.exec(name, ExecStart(("sh", "-ec", script), stdin=False)) as connection:
            for _, data in connection.output():
                output += data
        assert connection.exit_code == 0, output
        return output.decode()

    @property
    def environment(self) -> dict[str, str]:
        """What commands of ours need to find it."""
        return {**os.environ, "RAMET_HOST": f"unix://{self.folder}/api.sock"}

    def ramet(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run one of our commands and return its output; it must succeed, without a word on stderr."""
        command = [sys.executable, "-m", "ramet.cli", *arguments]
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), (arguments, done)
        return done.stdout

    def pid_of(self, instance: str) -> int:
        (pid,) = [
            pid
            for pid in vmm_pids(self.data)
            if f"guest=ramet-{instance}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return pid

    def boot(self, name: str, **fields: object) -> None:
        """Make a small instance that must come up."""
        body = {"size": "256MB", "overlay_size": "1GB", "vcpus": 1, **fields}
        made = self.client.create(CreateInstance(name=name, image=IMAGE, **body))  # type: ignore[arg-type]
        assert made.state == "Running", made

    def wait_for_names(self, names: Sequence[str]) -> None:
        """Wait until these instances are there and no others."""
        until = time.monotonic() + END_TIMEOUT_S
        while sorted(instance.name for instance in self.client.list()) != sorted(names):
            assert time.monotonic() < until, self.client.list()
            time.sleep(POLL_INTERVAL_S)

    def wait_armed(self, name: str) -> None:
        """Wait until traffic can wake a sleeper."""
        until = time.monotonic() + END_TIMEOUT_S
        while not self.client.auto_standby_status(name).wake_armed:
            assert time.monotonic() < until, self.log()
            time.sleep(POLL_INTERVAL_S)

    def leftovers(self) -> Leftovers:
        """Look at what is on the host."""
        pids = vmm_pids(self.data)
        with sqlite3.connect(self.data / "state.db") as database:
            (journal_count,) = database.execute("SELECT count(*) FROM journal").fetchone()
            records = [row[0] for row in database.execute("SELECT record ->> 'layer' FROM instances")]
        database.close()
        deleted = {
            f"{pid}: {target}"
            for pid in pids
            for target in _open_files(pid)
            if target.endswith(".qcow2 (deleted)")
        }
        held = set(_open_files(self.pid))
        needed = set[Path]()
        for layer in records:
            path = self.data / "layers" / f"{layer}.qcow2" if layer is not None else None
            while path is not None and path.suffix == ".qcow2":
                needed.add(path)
                path = read_backing(path)
        found = set((self.data / "layers").glob("*.qcow2"))
        return Leftovers(
            vmm_count=len(pids),
            tap_count=len(re.findall(r"^\d+: rmt\d+", run_ip("-o link show type tun"), re.MULTILINE)),
            admitted_count=nft("list", "set", "bridge", TABLE, "guests").count('"rmt'),
            folder_count=len(list((self.data / "instances").iterdir())),
            record_count=len(records),
            journal_count=journal_count,
            strange_layers={path.name for path in needed ^ found},
            deleted_open=deleted,
            captures_held={target for target in held if target.startswith("/memfd:ramet-")},
        )


@contextmanager
def own_daemon(kernel_package: Path | None) -> Iterator[Daemon]:
    """Have a daemon with the test image in a folder and a network namespace of its own.

    Outside, no VMM, mount or file of it is left.
    """
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    write_image(folder / "image")
    if kernel_package is not None:
        os.environ["RAMET_KERNEL_PACKAGE"] = str(kernel_package)
    daemon = Daemon(folder)
    with own_namespace():
        try:
            yield daemon
            daemon.stop()
        finally:
            daemon.end()
            for pid in vmm_pids(folder):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder)


def _open_files(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process lead to; some may be closed while we look."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(fd.readlink())
