"""Images from Debian's own registry, pulled by a daemon that may be cut off or killed, and booted."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramet.wire_api.images import Image, PullImage
from tests.images.build import Json, file, tar
from tests.images.lying_registry import incompressible
from tests.images.real_registry import Relay, docker_registry, push, relay
from tests.net.namespaces import own_namespace
from tests.vm.daemon import Daemon
from tests.vm.debian import debian_root, write_layout
from tests.vm.images import write_image
from tests.vm.site import vmm_pids

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),  # The first of them may have to make a Debian.
    pytest.mark.skipif(
        None in map(shutil.which, ("docker-registry", "skopeo", "mmdebstrap")),
        reason="apt-get install docker-registry skopeo mmdebstrap",
    ),
]

CUT_BYTES = 5_000_000
HOLD_BYTES = 10_000_000
DATA_BYTES = 24_000_000
BIG_BYTES = 4_000_000
PIECE_BYTES = 1 << 20  # Of each layer, not yet written when the daemon is killed.
TIMEOUT_S = 240.0
POLL_INTERVAL_S = 0.05


@dataclass
class Place:
    """A daemon, and the registry it pulls from by way of a relay."""

    daemon: Daemon
    relay: Relay
    checksum: str

    def name(self, image: str) -> str:
        return f"{self.relay.authority}/team/{image}"

    def run(self, instance: str, image: str) -> None:
        """Make an instance by our command line; an image that is not here is pulled."""
        options = ["--name", instance, "--cpus", "1", "--memory", "256MB", "--overlay-size", "1GB"]
        command = [sys.executable, "-m", "ramet.cli", "run", *options, self.name(image)]
        done = subprocess.run(
            command, env=self.daemon.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done

    def end_of(self, instance: str) -> int | None:
        """Wait until an instance has stopped by itself, and return its exit code."""
        assert self.daemon.client.wait(instance, "Stopped", "3m").state == "Stopped"
        return self.daemon.client.get(instance).exit_code

    def wait_pulled(self, image: str) -> Image:
        until = time.monotonic() + TIMEOUT_S
        while (found := self.daemon.client.get_image(self.name(image))).status != "ready":
            assert found.error is None, found
            assert time.monotonic() < until, found
            time.sleep(POLL_INTERVAL_S)
        return found

    def kill_held(self) -> tuple[str, int]:
        """Kill the daemon once it has written what the relay gives of a layer; return that, and its bytes."""
        until = time.monotonic() + TIMEOUT_S
        while max(self.half_layers.values(), default=0) <= HOLD_BYTES - PIECE_BYTES:
            assert time.monotonic() < until, self.half_layers
            time.sleep(POLL_INTERVAL_S)
        self.daemon.kill()
        [half] = self.half_layers.items()
        return half

    def big_layers(self) -> list[tuple[str, int]]:
        """Return the large layers that came by the relay since it began to count, and their bytes."""
        return [(layer, count) for layer, count in self.relay.served.items() if count > BIG_BYTES]

    def size_of(self, layer: str) -> int:
        """Return the length of a layer that has been downloaded."""
        return (self.daemon.data / "images" / "blobs" / layer.replace(":", "-")).stat().st_size

    @property
    def half_layers(self) -> dict[str, int]:
        """The bytes of each layer that is not whole, by digest."""
        folder = self.daemon.data / "images" / "blobs"
        return {path.stem.replace("-", ":"): path.stat().st_size for path in folder.glob("*.part")}

    @property
    def leftovers(self) -> list[str]:
        """Return what half-made things there are."""
        images = self.daemon.data / "images"
        found = [*(images / "tmp").iterdir(), *(images / "pulls").iterdir(), *images.glob("blobs/*.part")]
        return [str(path.relative_to(images)) for path in found]


@pytest.fixture(scope="module")
def place(kernel_package: Path | None) -> Iterator[Place]:
    """Return a daemon and a registry with three images, in a namespace of their own."""
    root = debian_root()
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    data = folder / "data.tar"
    content = incompressible(DATA_BYTES)
    data.write_bytes(tar([file("srv/data", content)]))
    command: Json = {"Cmd": ["apt-get", "--version"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    write_layout(folder / "debian", [root], command)
    write_layout(folder / "more", [root, data], {**command, "Cmd": ["cksum", "/srv/data"]})
    write_image(folder / "busybox", {"Cmd": ["sh", "-c", "echo busybox is here; exit 3"]})
    with pytest.MonkeyPatch.context() as patch, own_namespace():
        if kernel_package is not None:
            patch.setenv("RAMET_KERNEL_PACKAGE", str(kernel_package))
        daemon = Daemon(folder)
        try:
            with docker_registry(folder / "registry") as registry, relay(registry) as before:
                push(folder / "debian", f"{registry}/team/debian:1")
                push(folder / "more", f"{registry}/team/more:1")
                push(folder / "busybox", f"{registry}/team/busybox:1")
                checksum = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout
                daemon.start()
                yield Place(daemon, before, f"{checksum.decode().strip()} /srv/data")
                daemon.stop()
        finally:
            for pid in vmm_pids(folder):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder)


def test_a_debian_whose_pull_is_cut_again_and_again_comes_byte_for_byte_once_and_runs(place: Place) -> None:
    place.relay.forget()
    place.relay.cut_bytes = CUT_BYTES

    place.run("deb", "debian:1")

    assert place.end_of("deb") == 0
    assert any(line.startswith("apt ") for line in place.daemon.client.logs("deb"))
    [(layer, size_bytes)] = place.big_layers()
    assert size_bytes > 3 * CUT_BYTES
    assert place.relay.offsets[layer] == list(range(0, size_bytes, CUT_BYTES))
    assert place.leftovers == []
    place.daemon.client.delete("deb")


def test_a_pull_goes_on_where_the_killed_daemon_was(place: Place) -> None:
    place.relay.forget()
    place.relay.hold_bytes = HOLD_BYTES
    place.daemon.client.pull_image(PullImage(place.name("more:1")))
    layer, half_bytes = place.kill_held()
    before_bytes = place.relay.served[layer]
    place.relay.released.set()

    place.relay.hold_bytes = None
    place.daemon.start()  # Nobody asks for the image again.

    image = place.wait_pulled("more:1")
    assert place.relay.offsets[layer] == [0, half_bytes]
    assert place.relay.served[layer] - before_bytes == place.size_of(layer) - half_bytes
    assert [digest for digest, _ in place.big_layers()] == [layer]  # The other one was here already.
    assert place.leftovers == []
    assert [found.digest for found in place.daemon.client.images() if found.name == image.name] == [
        image.digest
    ]
    place.run("more", "more:1")
    assert place.end_of("more") == 0
    [line] = place.daemon.client.logs("more")
    assert line == place.checksum
    place.daemon.client.delete("more")


def test_a_busybox_runs_and_its_exit_code_is_told(place: Place) -> None:
    place.relay.forget()
    place.daemon.ramet("pull", "--quiet", place.name("busybox:1"))

    place.run("box", "busybox:1")

    assert place.end_of("box") == 3
    assert "busybox is here" in place.daemon.client.logs("box")
    place.daemon.client.delete("box")
