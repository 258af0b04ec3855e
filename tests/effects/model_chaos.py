"""Failure at any call of any port, found by looking at the ports and not by a list.

Every public function of what is below the effects (VMM, guest channel, netlink, nft, layer files, database,
memory files, writing file operations under the data folder) is wrapped where it is defined. A fault is armed
for the n-th call from now on, whichever that is, so no call can be forgotten.
"""

import errno
import functools
import inspect
import os
import random
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio

from ramet.core.errors import RametError
from ramet.disks import layers
from ramet.effects import awaken, site
from ramet.effects import volumes as site_volumes
from ramet.guest.channel import Channel
from ramet.guest.errors import GuestUnreachable
from ramet.linux import netlink, tun
from ramet.linux.memfd import SealableFile
from ramet.net.errors import FirewallFailed
from ramet.net.nft import Nft
from ramet.snapshots import catalog, schedules, store
from ramet.vmm.fake.faults import Call, Faults
from ramet.vmm.port import VmmFailed
from ramet.volumes import catalog as volume_catalog
from ramet.volumes.errors import VolumeUnwritable

Kind = Literal["fail", "fail late", "hold", "die"]

LETTING_GO = {"close", "aclose", "detach", "fail", "send", "fileno", "settle"}
"""Calls by which a thing is let go of, or that only note something: they have no failure to pass on."""


class Chaos:
    """One daemon's bad luck. `struck` counts what was made to fail, `called` everything that could be."""

    def __init__(self, folder: Path) -> None:
        self.points: set[str] = set()
        self.called: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.faults = ChaosFaults(self)
        self._folder = str(folder)
        self._armed: tuple[int, Kind] | None = None
        self._release = anyio.Event()

    def arm(self, kind: Kind, *, after: int) -> None:
        """Have the call after the next `after` ones meet `kind`."""
        self._armed = (after, kind)

    def calm(self) -> None:
        """Let all go well from here on, and go on what stands still."""
        self._armed = None
        self.go_on()

    def go_on(self) -> None:
        """Let nothing stand still from here on, while what is armed to fail still does."""
        if self._armed is not None and self._armed[1] == "hold":
            self._armed = None
        self._release.set()
        self._release = anyio.Event()

    def install(self) -> None:
        """Wrap the ports, for the rest of this process's life."""
        self._wrap_class("nft", Nft, FirewallFailed("on demand"))
        self._wrap_class("netlink", netlink.RouteSocket, OSError(errno.ENOBUFS, "on demand"))
        self._wrap_database()
        self._wrap_class("guest", Channel, GuestUnreachable("on demand"), only_async=True)
        no_memory = OSError(errno.ENOSPC, "on demand")
        self._wrap_class("memory", SealableFile, no_memory, also=("__init__",))
        for module, name, error in (
            (tun, "open_tap", OSError(errno.ENFILE, "on demand")),
            (netlink, "interface_index", OSError(errno.ENODEV, "on demand")),
            (layers, "create_qcow2", OSError(errno.ENOSPC, "on demand")),
            (store, "_create_files", OSError(errno.ENOSPC, "on demand")),
            (store, "_sync_all", OSError(errno.EIO, "on demand")),
            (store, "write_whole", OSError(errno.ENOSPC, "on demand")),
            (catalog, "write_whole", OSError(errno.ENOSPC, "on demand")),
            (schedules, "write_whole", OSError(errno.ENOSPC, "on demand")),
            (volume_catalog, "write_whole", OSError(errno.ENOSPC, "on demand")),
            (site_volumes, "make_file_system", VolumeUnwritable("on demand")),
            (layers, "read_backing", OSError(errno.EIO, "on demand")),
            (site, "open_channel", GuestUnreachable("on demand")),
            (awaken, "identify_child", GuestUnreachable("on demand")),
        ):
            point = f"{'.'.join(module.__name__.split('.')[-2:])}.{name}"
            # What hands out something open fails before it has: a failure after it would be a leak of ours.
            setattr(module, name, self._wrap(point, getattr(module, name), error, can_be_late=False))
        self._wrap_files()
        self.points |= {f"vmm.{call}" for call in Call.__args__}  # type: ignore[attr-defined]

    def _wrap_class(
        self,
        port: str,
        owner: type,
        error: Exception,
        *,
        also: tuple[str, ...] = (),
        only_async: bool = False,
    ) -> None:
        for name, function in inspect.getmembers(owner, inspect.isfunction):
            if name not in also and (name.startswith("_") or name in LETTING_GO):
                continue
            if only_async and not inspect.iscoroutinefunction(function):
                continue
            can_be_late = inspect.iscoroutinefunction(function)
            setattr(owner, name, self._wrap(f"{port}.{name}", function, error, can_be_late=can_be_late))

    def _wrap(
        self, point: str, function: Callable[..., Any], error: Exception, *, can_be_late: bool
    ) -> Callable[..., Any]:
        self.points.add(point)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped_async(*arguments: Any, **named: Any) -> Any:
                kind = self._next(point)
                await self._strike(kind, error, late=not can_be_late and kind == "fail late")
                result = await function(*arguments, **named)
                if can_be_late:
                    await self._strike(kind, error, late=True)
                return result

            return wrapped_async

        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.strike_now(self._next(point), error)
            return function(*arguments, **named)

        return wrapped

    def _wrap_database(self) -> None:
        chaos, connect = self, sqlite3.connect
        verbs = ("SELECT", "INSERT", "DELETE", "BEGIN", "COMMIT")
        self.points |= {f"database.{verb}" for verb in verbs}

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
                verb = statement.partition(" ")[0]
                if verb in verbs:
                    full = sqlite3.OperationalError("database or disk is full, on demand")
                    chaos.strike_now(chaos._next(f"database.{verb}"), full)
                return super().execute(statement, *arguments)

        def connect_to_chaos(path: Path, **options: Any) -> sqlite3.Connection:
            return connect(
                path, **options, factory=Connection if "isolation_level" in options else sqlite3.Connection
            )

        setattr(sqlite3, "connect", connect_to_chaos)  # noqa: B010

    def _wrap_files(self) -> None:
        full = OSError(errno.ENOSPC, "on demand")
        broken = OSError(errno.EIO, "on demand")
        for name, error in (("mkdir", full), ("write_bytes", full), ("unlink", broken), ("rename", full)):
            self._wrap_file_call(Path, name, error)
        self._wrap_file_call(shutil, "rmtree", broken)

    def _wrap_file_call(self, owner: Any, name: str, error: OSError) -> None:
        function, point = getattr(owner, name), f"files.{name}"
        self.points.add(point)

        @functools.wraps(function)
        def wrapped(path: Path, *arguments: Any, **named: Any) -> Any:
            if str(path).startswith(self._folder):
                self.strike_now(self._next(point), error)
            return function(path, *arguments, **named)

        setattr(owner, name, wrapped)

    @asynccontextmanager
    async def around(self, point: str, error: RametError) -> AsyncIterator[None]:
        """Stand around the work of a call."""
        kind = self._next(point)
        await self._strike(kind, error, late=False)
        yield
        await self._strike(kind, error, late=True)

    def _next(self, point: str) -> Kind | None:
        self.called[point] += 1
        if self._armed is None:
            return None
        after, kind = self._armed
        self._armed = (after - 1, kind) if after else None
        if after:
            return None
        self.struck[point] += 1
        return kind

    async def _strike(self, kind: Kind | None, error: Exception, *, late: bool) -> None:
        if kind == ("fail late" if late else "fail"):
            raise error
        if not late and kind == "die":
            die()
        if not late and kind == "hold":
            await self._release.wait()

    def strike_now(self, kind: Kind | None, error: Exception) -> None:
        """Do what a call without a wait can meet."""
        if kind == "die":
            die()
        elif kind is not None:
            raise error


class ChaosFaults(Faults):
    """The fake VMM's own hook, at every call of its port."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self._chaos = chaos

    def struck(self, point: str) -> int:
        """Return how often a call was made to fail."""
        return self._chaos.struck[point]

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        async with self._chaos.around(f"vmm.{call}", VmmFailed("on demand")):
            yield


def draw(rng: random.Random) -> Kind:
    """Return what shall happen to some call."""
    return rng.choices(("fail", "fail late", "hold"), (5, 3, 2))[0]


def die() -> None:
    """End this process as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)
