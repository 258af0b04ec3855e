"""`./run soak [SECONDS]`: a daemon and real guests under random work for a long time.

    python -m tests.soak 600                several clients; the daemon is killed now and then
    python -m tests.soak 600 --fake         the random model of tests/effects, seed after seed

Now and then, and at the end, everybody stands still and the host is compared with the records: processes,
TAPs, admissions, folders, layers, journal; at the end, with all deleted, the daemon's descriptors and the
host's mounts, too. The last line is a JSON summary; exit code 1: something did not hold.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import leave_mounts, own_namespace
from tests.soak.work import Tally, Worker
from tests.vm.daemon import Daemon
from tests.vm.images import IMAGE, write_image
from tests.vm.site import vmm_pids

SECONDS_DEFAULT = 600
WORKERS = 2
ROUND_S = 15.0
SETTLE_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.1
FD_GROWTH_MAX = 8
"""Threads and pools that a daemon makes at need; a leak of one in each operation is more."""
MODEL_STEPS = 200


class Soak:
    """One daemon, its clients, and what must hold."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.daemon = Daemon(folder)
        self.tally = Tally()
        self._seconds, self._rng = seconds, random.Random(seed)
        self._quiet = threading.Event()
        self._turns = [threading.Lock() for _ in range(WORKERS)]
        self._checks = 0
        self._seed = seed

    def run(self) -> dict[str, Any]:
        """Work for the time, and return the summary."""
        began = time.monotonic()
        mounts = Path("/proc/self/mounts").read_text()
        self.daemon.start()
        self.daemon.client.import_image(str(self.daemon.folder / "image"), IMAGE)
        fds = self._daemon_fds()
        self.daemon.client.create(CreateInstance("source", IMAGE, size="256MB", overlay_size="1GB"))
        self.daemon.sh("source", "echo source >/var/note; sync")
        self._quiet.set()
        until = time.monotonic() + self._seconds
        workers = [
            Worker(number, self._seed, self.daemon.client, "source", self.tally) for number in range(WORKERS)
        ]
        threads = [
            threading.Thread(target=worker.run, args=(self._quiet, turn, until))
            for worker, turn in zip(workers, self._turns, strict=True)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < until and not self.tally.violations:
            time.sleep(min(self._rng.uniform(0.3, 1.0) * ROUND_S, max(0.0, until - time.monotonic())))
            if self._rng.random() < 0.5:
                self._restart()
            else:
                self._stand_still()
        for thread in threads:
            thread.join()
        self._finish(fds)
        if Path("/proc/self/mounts").read_text() != mounts:
            self.tally.violations.append("the host's mounts are not as before")
        return {
            "seconds": round(time.monotonic() - began, 1),
            "seed": self._seed,
            "operations": dict(self.tally.operations),
            "broken_by_restarts": dict(self.tally.broken),
            "restarts": self.tally.restarts,
            "checks": self._checks,
            "violations": self.tally.violations,
        }

    def _restart(self) -> None:
        """Kill the daemon in the middle of everything; what breaks meanwhile is not held against it."""
        self._quiet.clear()
        self.tally.restarts += 1
        self.daemon.kill()
        self.daemon.start()
        self._quiet.set()

    def _stand_still(self) -> None:
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            self._check()

    def _check(self) -> None:
        self._checks += 1
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while wrong := self._differences():
            if time.monotonic() > until:
                self.tally.violations.extend(wrong)
                return
            time.sleep(POLL_INTERVAL_S)

    def _differences(self) -> list[str]:
        found = self.daemon.leftovers()
        instances = self.daemon.client.list()
        running = sum(instance.state == "Running" for instance in instances)
        expected = {
            "vmm_count": running,
            "tap_count": running,
            "admitted_count": running,
            "folder_count": len(instances),
            "record_count": len(instances),
            "journal_count": 0,
        }
        wrong = [f"{kind}: {getattr(found, kind)}, not {count}" for kind, count in expected.items()]
        wrong = [
            text for text, (kind, n) in zip(wrong, expected.items(), strict=True) if getattr(found, kind) != n
        ]
        if found.strange_layers or found.deleted_open:
            wrong.append(f"layers: {sorted(found.strange_layers)} {sorted(found.deleted_open)}")
        return wrong

    def _finish(self, fds: int) -> None:
        if self.tally.violations:
            return
        for instance in self.daemon.client.list():
            self.daemon.client.delete(instance.id)
        self._check()
        if self._daemon_fds() > fds + FD_GROWTH_MAX:
            self.tally.violations.append(f"the daemon has {self._daemon_fds()} descriptors, {fds} at first")
        self.daemon.stop()

    def _daemon_fds(self) -> int:
        process = self.daemon._process
        assert process is not None
        return len(os.listdir(f"/proc/{process.pid}/fd"))


def soak_fake(seconds: float, seed: int) -> dict[str, Any]:
    """Run the model, seed after seed, until the time is up; every other one keeps to rules, too."""
    until, seeds, violations = time.monotonic() + seconds, 0, list[str]()
    while time.monotonic() < until and not violations:
        command = [
            sys.executable,
            "-m",
            "tests.effects.model",
            "--seed",
            str(seed + seeds),
            "--steps",
            str(MODEL_STEPS),
            *(["--keep"] if (seed + seeds) % 2 else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        seeds += 1
        if done.returncode:
            violations.append((done.stdout + done.stderr)[-4000:])
    return {"seconds": seconds, "seed": seed, "models": seeds, "violations": violations}


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Run real guests in a network namespace and a folder of their own, where nobody else mounts."""
    leave_mounts()
    folder = Path(tempfile.mkdtemp(prefix="rmt-soak-", dir="/tmp"))
    write_image(folder / "image")
    with own_namespace():
        work = Soak(folder, seconds, seed)
        try:
            summary = work.run()
        finally:
            if work.tally.violations:
                print(work.daemon.log(), file=sys.stderr)
            work.daemon.stop()
            for pid in vmm_pids(folder):
                os.kill(pid, 9)
            shutil.rmtree(folder)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run soak", description="Random work for a long time.")
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS_DEFAULT)
    parser.add_argument("--fake", action="store_true", help="fake VMMs, and faults in every call")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    summary = soak_fake(asked.seconds, asked.seed) if asked.fake else soak(asked.seconds, asked.seed)
    print(json.dumps(summary))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
