"""The files of a stand-in guest: a folder of this host, read and written by the standard library's tar."""

import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, cast

import anyio
import anyio.from_thread
import anyio.to_thread

from ramet.core.errors import Broken, Invalid, NotFound
from ramet.instance.fleet_types import PathStat

CHUNK_BYTES = 64 << 10
PATH_BYTES_MAX = 4095


class PathNotFound(NotFound):
    """As the guest tells it."""

    code = "path_not_found"


class PathInvalid(Invalid):
    """As the host tells it, before it asks the guest."""

    code = "path_invalid"
    remedy_default = "use 1 to 4095 bytes of text without zeros"


class BadArchive(Invalid):
    """As the guest tells it."""

    code = "bad_archive"


class StandInFiles:
    """A guest's root.

    `broken_after_bytes`: how much of an archive is read before the guest goes away; `refused`: how the writes
    that failed did.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ramet-guest-"))
        self.broken_after_bytes: int | None = None
        self.keep_owner: bool | None = None
        self.open_count = 0
        self.refused: list[Exception] = []

    def remove(self) -> None:
        shutil.rmtree(self.root)

    def host_path(self, path: str, *, follow_links: bool) -> Path:
        """Return where `path` of the guest is here."""
        if not path or "\0" in path or len(path.encode()) > PATH_BYTES_MAX:
            raise PathInvalid(f"{path[:40]!r} is not a path")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        here = self.root
        for index, part in enumerate(parts):
            here /= part
            if here.is_symlink() and (follow_links or index < len(parts) - 1):
                target = os.readlink(here)
                below = "/".join(parts[index + 1 :])
                base = "" if target.startswith("/") else "/".join(parts[:index])
                return self.host_path(f"{base}/{target}/{below}", follow_links=follow_links)
        return here

    def stat(self, path: str, *, follow_links: bool) -> PathStat:
        here = self.host_path(path, follow_links=follow_links)
        try:
            found = here.lstat()
        except FileNotFoundError:
            return PathStat(exists=False)
        except OSError as error:
            return PathStat(exists=False, error=error.strerror)
        return PathStat(
            exists=True,
            is_dir=stat.S_ISDIR(found.st_mode),
            is_file=stat.S_ISREG(found.st_mode),
            is_symlink=stat.S_ISLNK(found.st_mode),
            link_target=os.readlink(here) if stat.S_ISLNK(found.st_mode) else None,
            mode=stat.S_IMODE(found.st_mode),
            size_bytes=found.st_size,
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
        )

    @asynccontextmanager
    async def read(self, path: str, *, follow_links: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        here = self.host_path(path, follow_links=follow_links)
        if not here.exists() and not here.is_symlink():
            raise PathNotFound(f"the guest has nothing at {path}", remedy="look with: ramet exec NAME ls")
        name = "." if path.endswith("/.") else posixpath.basename(posixpath.normpath(path)) or "."
        send, receive = anyio.create_memory_object_stream[bytes](2)
        self.open_count += 1
        failure: Broken | None = None
        try:
            async with anyio.create_task_group() as tasks, receive:
                tasks.start_soon(self._pack, here, name, send)
                try:
                    yield self._chunks(receive)
                except Broken as error:  # Raised below, outside the group, which would wrap it.
                    failure = error
                tasks.cancel_scope.cancel()
        finally:
            self.open_count -= 1
        if failure is not None:
            raise failure

    async def _chunks(self, receive: Any) -> AsyncIterator[bytes]:
        passed_bytes = 0
        async for chunk in receive:
            if self.broken_after_bytes is not None and passed_bytes >= self.broken_after_bytes:
                raise Broken("the guest went away")
            yield chunk
            passed_bytes += len(chunk)

    async def _pack(self, here: Path, name: str, send: Any) -> None:
        class Writer:
            def write(self, data: bytes) -> None:
                anyio.from_thread.run(send.send, bytes(data))

        def pack() -> None:
            with tarfile.open(
                fileobj=cast("IO[bytes]", Writer()), mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK_BYTES
            ) as archive:
                archive.add(here, name)

        try:
            async with send:
                await anyio.to_thread.run_sync(pack, abandon_on_cancel=True)
        except anyio.BrokenResourceError:
            return

    async def write(self, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool) -> None:
        here = self.host_path(path, follow_links=True)
        if not here.is_dir():
            raise PathNotFound(f"the guest has no directory {path}")
        self.keep_owner = keep_owner

        class Reader:
            def read(self, size: int) -> bytes:
                return anyio.from_thread.run(next_chunk)

        async def next_chunk() -> bytes:
            return await anext(chunks, b"")

        def owned(info: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
            info = tarfile.tar_filter(info, folder)
            if keep_owner:
                return info
            return info.replace(uid=os.getuid(), gid=os.getgid(), uname="", gname="", deep=False)

        def unpack() -> None:
            stream = cast("IO[bytes]", Reader())
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK_BYTES, errorlevel=2) as archive:
                archive.extractall(here, filter=owned, numeric_owner=True)

        try:
            await anyio.to_thread.run_sync(unpack)
        except tarfile.TarError as error:
            self.refused.append(error)
            raise BadArchive(f"not an archive: {error}") from error
        except Exception as error:
            self.refused.append(error)
            raise
        async for chunk in chunks:  # What follows the end mark.
            assert not chunk.strip(b"\0")
