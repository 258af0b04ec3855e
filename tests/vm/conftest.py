"""Real guests in real VMMs.

A guest is dear: booting one takes seconds, forking one tenths of them. So all tests of this folder share one
network namespace, one event loop, one daemon (in process) and one booted source, and fork what they need.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ramet.core.errors import RametError
from ramet.daemon.config import ActiveBallooningSettings, HypervisorSettings, MemorySettings, Settings
from ramet.daemon.wiring import running
from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import Namespace, own_namespace, run_ip
from tests.vm.daemon import Daemon
from tests.vm.images import IMAGE, write_image
from tests.vm.site import FAR_ADDRESS, METADATA_ADDRESS, NEAR_ADDRESS, Children, Site, vmm_pids

KERNELS = Path(__file__).parents[2] / ".cache" / "kernel"


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
def far_side() -> Iterator[Namespace]:
    """Put all tests of this folder into a namespace of their own; return the one behind its uplink."""
    with own_namespace():
        far = Namespace()
        run_ip("link add up0 type veth peer name far0")
        run_ip(f"link set far0 netns {far.path}")
        far.ip("link set lo up")
        far.ip(f"address add {FAR_ADDRESS}/24 dev far0")
        far.ip(f"address add {METADATA_ADDRESS}/32 dev lo")
        far.ip("link set far0 up")
        run_ip(f"address add {NEAR_ADDRESS}/24 dev up0")
        run_ip("link set up0 up")
        run_ip(f"route add default via {FAR_ADDRESS}")
        yield far
        far.close()


@pytest.fixture(scope="package")
def kernel_package() -> Path | None:
    """Return where guests' kernels come from; None for an installed one."""
    named = os.environ.get("RAMET_KERNEL_PACKAGE")
    if named:
        return Path(named)
    return next(iter(sorted(KERNELS.glob("linux-image-*.deb"))), None)


@pytest.fixture(scope="package")
def scratch() -> Iterator[Path]:
    """Return a folder with a path short enough for sockets; no VMM of it is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    yield folder
    for pid in vmm_pids(folder):
        os.kill(pid, 9)
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
async def site(far_side: Namespace, scratch: Path, kernel_package: Path | None) -> AsyncIterator[Site]:
    """Return the parts of a running daemon that has the test image."""
    write_image(scratch / "image")
    floor = ActiveBallooningSettings(protected_floor_min_bytes=64 << 20)  # The guests are small.
    settings = Settings(
        data_dir=scratch / "data",
        kernel_package=kernel_package,
        hypervisor=HypervisorSettings(memory=MemorySettings(active_ballooning=floor)),
    )
    async with running(settings) as parts:
        image = await parts.images.import_path(scratch / "image", name=IMAGE)
        site = Site(parts, image.digest, scratch / "data", far_side)
        yield site
        for view in site.fleet.list():
            await site.fleet.delete(view.record.id)
        assert vmm_pids(scratch) == []


@pytest.fixture(scope="package")
async def source(site: Site) -> str:
    """Return the name of a booted instance that every test may fork and none may end."""
    await site.boot("source")
    return "source"


@pytest.fixture(scope="package")
def served(kernel_package: Path | None) -> Iterator[Daemon]:
    """Return a daemon, a process in a namespace of its own, with a booted instance called "web".

    For tests from outside, by the command line; nobody ends the instance.
    """
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    write_image(folder / "image")
    if kernel_package is not None:
        os.environ["RAMET_KERNEL_PACKAGE"] = str(kernel_package)
    daemon = Daemon(folder)
    try:
        with own_namespace():
            daemon.start()
        daemon.client.import_image(str(folder / "image"), IMAGE)
        body = CreateInstance(name="web", image=IMAGE, size="256MB", overlay_size="2GB", vcpus=1)
        assert daemon.client.create(body).state == "Running"
        yield daemon
        daemon.client.delete("web")
        daemon.stop()
    finally:
        for pid in vmm_pids(folder):
            os.kill(pid, 9)
        shutil.rmtree(folder)


@pytest.fixture
async def children(site: Site) -> AsyncIterator[Children]:
    """Return what forks instances, which go with the test."""
    made = Children(site)
    yield made
    for name in made.names:
        try:
            await site.fleet.delete(name)
        except RametError:
            assert name not in [view.record.name for view in site.fleet.list()]
