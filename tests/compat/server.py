"""A real daemon behind its API, on fake VMMs, for the official client.

Fleet, records, layers, network, images and pulls are the real ones; a VMM that is none stands for QEMU. It
runs in a thread with a network namespace of its own, and listens in the caller's.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from ramet.api import HostFacts, HttpServer, KeptAnswers, Parts, RuntimeFacts, TokenAuth, create_app
from ramet.api.facts import runtime_features
from ramet.daemon.config import Settings
from ramet.daemon.wiring import make_keepers
from ramet.effects.counting import SiteResources
from ramet.instance.held_exec import HeldExecs
from ramet.policies.keepers import Keepers
from ramet.store.answers import AnswerStore
from ramet.store.paths import DataFolder
from ramet.vmm.fake.driver import FakeDriver
from ramet.vmm.fake.faults import Faults
from ramet.vmm.port import Driver
from tests.api.stand_in import SECRET
from tests.effects.world import Daemon, World, new_folder, performer_of
from tests.images.build import file, tar
from tests.images.lying_registry import lying_registry
from tests.net.namespaces import own_namespace

IMAGE = "demo:1"
PULLED = "team/pulled"


class QemuStandIn(FakeDriver):
    """A fake VMM under a name that the official client knows."""

    name = "qemu"


class CompatWorld(World):
    """A host whose one hypervisor is called qemu."""

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        return QemuStandIn(data.instances, faults, self.vmm_timeout_s, self.nursery)


@dataclass(frozen=True)
class Served:
    """A daemon under way: where it answers, and the registry that it can pull `PULLED` from."""

    url: str
    registry: str


@contextmanager
def serve(images: Path) -> Iterator[Served]:
    """Serve a daemon with the images of a catalog's folder, from a thread with a loop of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    started: Future[tuple[str, Callable[[], None]]] = Future()

    def run() -> None:
        try:
            with own_namespace(), lying_registry() as registry:
                registry.put(
                    registry.blobs.manifest([tar([file("pulled", b"yes")])], config={"Cmd": ["sleep"]})
                )
                asyncio.run(_serve(images, listener, registry.authority, started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)  # Raised where somebody waits.

    thread = threading.Thread(target=run)
    thread.start()
    try:
        authority, stop = started.result()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", authority)
        finally:
            stop()
    finally:
        thread.join()
        listener.close()


async def _serve(
    images: Path, listener: socket.socket, authority: str, started: "Future[tuple[str, Callable[[], None]]]"
) -> None:
    world = CompatWorld(new_folder(), images)
    world.pulls_images = True
    try:
        async with world.daemon() as daemon, anyio.create_task_group() as group:
            performer = performer_of(daemon.fleet)
            keepers = make_keepers(Settings(), daemon.fleet, performer, daemon.snapshots, daemon.site)
            idle = keepers.idle
            group.start_soon(daemon.site.network.flows.run, idle.connections_changed, idle.all_changed)
            group.start_soon(keepers.run)
            runtime = RuntimeFacts(QemuStandIn.name, True, runtime_features(limits_disks=True))
            facts = HostFacts("0.1.0", QemuStandIn.name, (runtime,))
            app = create_app(parts_of(daemon, keepers, facts), auth=TokenAuth(SECRET))
            server = HttpServer(app, listener)
            started.set_result((authority, server.stop))
            await server.serve()
            group.cancel_scope.cancel()
    finally:
        await world.aclose()


def parts_of(daemon: Daemon, keepers: Keepers, facts: HostFacts) -> Parts:
    """Return what the API of a daemon is made of; exec sessions cannot be left."""
    return Parts(
        facts,
        daemon.fleet,
        daemon.site.images,
        daemon.snapshots,
        daemon.volumes,
        SiteResources(daemon.site),
        keepers.idle,
        keepers.schedules,
        keepers.reclaims,
        KeptAnswers(AnswerStore()),
        HeldExecs(),
    )
