"""Where volumes may be mounted, and together with what."""

import json
from dataclasses import asdict

import pytest

from ramet.core.ids import VolumeId
from ramet.core.spec import InstanceSpec
from ramet.core.volumes import (
    VOLUME_COUNT_MAX,
    InvalidMount,
    VolumeMount,
    VolumeWritable,
    check_mount_path,
    check_mounts,
)


def mount(name: str, path: str = "", **how: object) -> VolumeMount:
    return VolumeMount(VolumeId(name), path or f"/{name}", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", ["/data", "/srv/a b/ü", "/etc/app", "/usr/local/share", "/process", "/d.../x"]
)
def test_a_path_of_ones_own_is_taken(path: str) -> None:
    check_mount_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "data", "./data", "//data", "/data/", "/a//b", "/a/./b", "/a/..", "/..", "/a\nb", "/a\0"),
        *("/proc", "/proc/x", "/sys/fs", "/dev/shm", "/usr", "/etc", "/run", "/lib64", "/" + "x" * 2000),
    ],
)
def test_another_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidMount):
        check_mount_path(path)


@pytest.mark.parametrize(
    "mounts",
    [
        [mount("a"), mount("b", "/a")],
        [mount("a"), mount("a", "/b")],
        [mount("a", overlay_part=0)],
        [mount(f"v{number}") for number in range(VOLUME_COUNT_MAX + 1)],
    ],
)
def test_what_cannot_be_together_is_refused(mounts: list[VolumeMount]) -> None:
    with pytest.raises(InvalidMount):
        check_mounts(mounts)
    check_mounts(mounts[:0])


def test_one_may_lie_within_another() -> None:
    check_mounts([mount("b", "/a/b"), mount("a", "/a", is_read_only=True, overlay_part=0)])


def test_a_spec_with_volumes_is_read_as_it_was_written() -> None:
    spec = InstanceSpec(
        *("i", "d", "qemu", 1, 1, 100),
        volumes=(mount("a", is_read_only=True, overlay_part=1), mount("b")),
        overlay_parts=(10, 20),
    )
    assert InstanceSpec.from_dict(json.loads(json.dumps(asdict(spec)))) == spec
    assert (spec.disk_bytes, spec.disk_parts) == (130, (100, 10, 20))


def test_a_spec_of_before_there_were_volumes_has_none() -> None:
    raw = asdict(InstanceSpec("i", "d", "qemu", 1, 1, 1))
    del raw["volumes"], raw["overlay_parts"]
    assert InstanceSpec.from_dict(raw).volumes == ()


def test_a_child_has_what_its_source_reads_and_there_is_none_of_who_writes() -> None:
    reading = (mount("a", is_read_only=True), mount("b", is_read_only=True, overlay_part=0))
    spec = InstanceSpec("i", "d", "qemu", 1, 1, 1, volumes=reading, overlay_parts=(5,))
    assert (spec.for_fork().volumes, spec.for_fork().overlay_parts) == (reading, (5,))
    writing = InstanceSpec("i", "d", "qemu", 1, 1, 1, volumes=(mount("a"),))
    with pytest.raises(VolumeWritable, match="volume a"):
        writing.for_fork()
    assert writing.copied() == writing
