"""Files and terminals through the fleet, with guests that have no kernel."""

import io
import json
import tarfile
from collections.abc import AsyncIterator

import anyio
import pytest

from ramet.guest.errors import (
    BadArchive,
    GuestRefused,
    PathInvalid,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
)
from ramet.instance.fleet_types import ExecCommand, WindowSize, WindowSizeInvalid, WrongState
from ramet.wire.frames import CREDIT_BYTES
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

LARGE = bytes(range(256)) * (CREDIT_BYTES // 128)


def tar_of(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """Return an archive of (name, kind, data, link target)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, data, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.uid, info.mode = kind, target, len(data), 7, 0o640
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def file(name: str, data: bytes = b"x") -> tuple[str, bytes, bytes, str]:
    return name, tarfile.REGTYPE, data, ""


async def in_pieces(data: bytes, piece_bytes: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece_bytes):
        yield data[start : start + piece_bytes]


async def read(daemon: Daemon, ref: str, path: str, *, follow_links: bool = False) -> dict[str, bytes]:
    written = bytearray()
    async with daemon.fleet.open_archive(ref, path, follow_links=follow_links) as chunks:
        async for chunk in chunks:
            written += chunk
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        contents = {info.name: tar.extractfile(info) for info in tar if not info.issym()}
        return {name: content.read() if content else b"" for name, content in contents.items()}


async def test_what_is_put_into_a_guest_is_there_and_in_its_forks(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        archive = tar_of(file("app/large", LARGE), ("app/link", tarfile.SYMTYPE, b"", "large"))
        await daemon.fleet.put_archive("src", "/var", in_pieces(archive), keep_owner=True)
        await daemon.fleet.fork("src", ["child"])
        await daemon.fleet.put_archive("src", "/var", in_pieces(tar_of(file("later"))), keep_owner=False)
        assert await read(daemon, "child", "/var/app") == {"app": b"", "app/large": LARGE}
        assert await read(daemon, "child", "/var/app/link", follow_links=True) == {"link": LARGE}
        with pytest.raises(PathNotFound):
            await read(daemon, "child", "/var/later")
        found = await daemon.fleet.stat_path("child", "/var/app/link", follow_links=False)
        assert (found.is_symlink, found.link_target) == (True, "large")
        found = await daemon.fleet.stat_path("child", "/var/app/link", follow_links=True)
        assert (found.is_file, found.size_bytes, found.mode, found.uid) == (True, len(LARGE), 0o640, 7)
        assert not (await daemon.fleet.stat_path("src", "/none", follow_links=True)).exists


async def test_what_cannot_be_copied_is_refused_with_its_reason(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        archive = tar_of(file("f"), ("d", tarfile.DIRTYPE, b"", ""), ("out", tarfile.SYMTYPE, b"", "/etc"))
        await daemon.fleet.put_archive("src", "/var", in_pieces(archive), keep_owner=False)
        for path, data, error in [
            ("/none", archive, PathNotFound),
            ("/var/f", archive, PathNotDirectory),
            ("/var", tar_of(file("d")), PathIsDirectory),
            ("/var", tar_of(file("../up")), BadArchive),
            ("/var", tar_of(file("out/up")), BadArchive),
            ("/var", b"", BadArchive),
            ("/var", archive[:700], BadArchive),
            ("", archive, PathInvalid),
            ("/a\0b", archive, PathInvalid),
            ("/" + "a" * 5000, archive, PathInvalid),
        ]:
            with pytest.raises(error):
                await daemon.fleet.put_archive("src", path, in_pieces(data), keep_owner=False)
        await daemon.run("src", "fault", "stat", "refuse")
        with pytest.raises(GuestRefused):
            await daemon.fleet.stat_path("src", "/var", follow_links=False)
        await daemon.fleet.stop("src")
        with pytest.raises(WrongState):
            await daemon.fleet.stat_path("src", "/var", follow_links=False)
        with pytest.raises(WrongState):
            daemon.fleet.open_archive("src", "/var", follow_links=False)


async def test_a_copy_that_is_given_up_leaves_nothing_open(world: World) -> None:
    async with world.daemon() as daemon:
        record = (await daemon.fleet.create("src", daemon.spec)).record
        archive = tar_of(file("large", LARGE))

        class Torn(Exception):
            pass

        async def torn() -> AsyncIterator[bytes]:
            yield archive[: CREDIT_BYTES + 1]
            raise Torn

        with pytest.raises(Torn):
            await daemon.fleet.put_archive("src", "/var", torn(), keep_owner=False)
        assert not (await daemon.fleet.stat_path("src", "/var/large", follow_links=False)).exists
        await daemon.fleet.put_archive("src", "/var", in_pieces(archive), keep_owner=False)
        async with daemon.fleet.open_archive("src", "/var/large", follow_links=False) as chunks:
            assert await anext(chunks)
        assert (await read(daemon, "src", "/var/large"))["large"] == LARGE
        channel = await daemon.site.rigs[record.id].channel()
        await channel.health()
        assert channel.open_stream_count == 0


async def test_a_terminal_tells_its_size_and_ends_by_what_is_typed(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        for typed, code in ((b"\x03", 130), (None, 0)):
            session = await daemon.fleet.open_exec("src", ExecCommand(("size",), tty=WindowSize(24, 80)))
            output = session.output()
            assert await anext(output) == (1, b"24 80\r\n")
            await session.resize(WindowSize(50, 132))
            assert await anext(output) == (1, b"50 132\r\n")
            if typed is None:
                await session.close_stdin()
            else:
                await session.write(typed)
            with anyio.fail_after(60):
                assert [piece async for piece in output] == []
            assert (await session.wait()).exit_code == code
            await session.resize(WindowSize(1, 1))
        memory = json.loads(await daemon.run("src", "memory"))
        assert memory["state"] == "running"


async def test_a_command_that_is_not_there_is_told_on_the_terminal(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        session = await daemon.fleet.open_exec("src", ExecCommand(("none",), tty=WindowSize(24, 80)))
        assert [piece async for piece in session.output()] == [(1, b"ramet: none: command not found\r\n")]
        assert (await session.wait()).exit_code == 127


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (65_536, 80), (24, -1)])
def test_no_terminal_is_empty_or_larger_than_terminals_can_be(size: tuple[int, int]) -> None:
    with pytest.raises(WindowSizeInvalid):
        WindowSize(*size)
