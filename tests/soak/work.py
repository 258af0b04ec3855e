"""What one client of a soak does: random operations on instances of its own, and what it expects of each.

A call that a restart of the daemon falls into may break; what became of the instance, the client asks when
the daemon is back. Without a restart nothing may fail.
"""

import io
import random
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Event, Lock

from ramet.client import Client
from ramet.core.errors import RametError
from ramet.wire_api.exec import ExecStart

INSTANCES_MAX = 3


class Wrong(AssertionError):
    """An answer is not what it must be."""


@dataclass
class Tally:
    """What was done so far, by all clients."""

    operations: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    restarts: int = 0
    lock: Lock = field(default_factory=Lock)

    def count(self, counter: Counter[str], what: str) -> None:
        with self.lock:
            counter[what] += 1


class Worker:
    """One client. `note` is what a guest's file must say, None where a call that broke left that open."""

    def __init__(self, number: int, seed: int, client: Client, source: str, tally: Tally) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        self._client, self._source, self._tally = client, source, tally
        self._prefix, self._made = f"w{number}", 0
        self._notes: dict[str, str | None] = {}
        self._running: dict[str, bool] = {}

    def run(self, quiet: Event, turn: Lock, until: float) -> None:
        """Work until `until`, one operation at a time with `turn` held; `quiet`: a daemon is up."""
        while time.monotonic() < until and not self._tally.violations:
            with turn:
                quiet.wait()
                self._once(quiet)

    def _once(self, quiet: Event) -> None:
        (what, name), restarts = self._choose(), self._tally.restarts
        try:
            getattr(self, f"_{what}")(name)
            self._tally.count(self._tally.operations, what)
        except (RametError, Wrong, EOFError, tarfile.TarError) as error:
            if restarts == self._tally.restarts:
                self._violated(f"{what} {name}: {type(error).__name__}: {error}")
                return
            self._tally.count(self._tally.broken, what)
            self._look_again_until_told(quiet)

    def _look_again_until_told(self, quiet: Event) -> None:
        while True:
            quiet.wait()
            restarts = self._tally.restarts
            try:
                self._look_again()
                return
            except (RametError, Wrong) as error:
                if restarts == self._tally.restarts:
                    self._violated(f"after a restart: {type(error).__name__}: {error}")
                    return

    def _violated(self, text: str) -> None:
        with self._tally.lock:
            self._tally.violations.append(text)

    def _choose(self) -> tuple[str, str]:
        running = [name for name, runs in self._running.items() if runs]
        stopped = [name for name, runs in self._running.items() if not runs]
        if len(self._running) < INSTANCES_MAX and self._rng.random() < 0.4:
            return "fork", self._rng.choice([self._source, *running])
        choices = [
            (what, name) for name in running for what in ("exec", "exec", "write", "copy", "stop", "delete")
        ]
        choices += [(what, name) for name in stopped for what in ("start", "delete")]
        return self._rng.choice(choices) if choices else ("fork", self._source)

    # Operations

    def _fork(self, name: str) -> None:
        self._made += 1
        child = f"{self._prefix}-{self._made}"
        # Known before it is asked for: if the call breaks, it may be there or not.
        self._running[child] = True
        self._notes[child] = "source" if name == self._source else self._notes[name]
        found = self._client.fork(name, child)
        if found.state != "Running":
            raise Wrong(f"a fork is {found.state}")

    def _exec(self, name: str) -> None:
        """The guest is itself, and its file says what was written last."""
        said = self._sh(name, "cat /proc/sys/kernel/hostname; cat /var/note 2>/dev/null || true").splitlines()
        if said[:1] != [name]:
            raise Wrong(f"the guest is called {said[:1]}")
        note = self._notes[name]
        if note is not None and said[1:] != [note]:
            raise Wrong(f"its note says {said[1:]}, not {note}")

    def _write(self, name: str) -> None:
        self._notes[name], note = None, f"{self._rng.random()}"
        self._sh(name, f"echo {note} >/var/note; sync")
        self._notes[name] = note

    def _copy(self, name: str) -> None:
        """What is copied in comes out again."""
        content = self._rng.randbytes(self._rng.randrange(200_000))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo("blob")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        self._client.write_archive(name, "/tmp", [packed.getvalue()])
        back = io.BytesIO(b"".join(self._client.read_archive(name, "/tmp/blob")))
        with tarfile.open(fileobj=back) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            if file is None or file.read() != content:
                raise Wrong("a file came back different")

    def _stop(self, name: str) -> None:
        found = self._client.stop(name)
        self._running[name] = False
        if found.state != "Stopped":
            raise Wrong(f"it is {found.state} after stop")

    def _start(self, name: str) -> None:
        self._client.start(name)
        found = self._client.wait(name, "Running", "120s")
        if found.state != "Running":
            raise Wrong(f"it is {found.state} after start: {found.state_error}")
        self._running[name] = True

    def _delete(self, name: str) -> None:
        self._client.delete(name)
        del self._running[name], self._notes[name]

    def _sh(self, name: str, script: str) -> str:
        output = b""
        with self._client.exec(name, ExecStart(("sh", "-ec", script), stdin=False)) as connection:
            for _, data in connection.output():
                output += data
        if connection.exit_code != 0:
            raise Wrong(f"exit code {connection.exit_code}: {output!r}")
        return output.decode()

    def _look_again(self) -> None:
        """After a call broke: learn which instances there are and what they do."""
        found = {each.name: each for each in self._client.list() if each.name.startswith(f"{self._prefix}-")}
        for name in list(self._running):
            if name not in found:
                del self._running[name], self._notes[name]
        for name, instance in found.items():
            state = instance.state
            if state not in ("Running", "Stopped"):
                target = "Stopped" if state == "Shutdown" else "Running"
                state = self._client.wait(name, target, "120s").state
            if state not in ("Running", "Stopped"):
                raise Wrong(f"{name} is {state} after a restart: {instance.state_error}")
            self._running[name] = state == "Running"
            self._notes.setdefault(name, None)
