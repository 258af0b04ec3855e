"""The copying WebSocket of the compatible protocol, translated to and from tar streams.

Towards the guest the protocol does not tell a file's size before its content, and a tar header must. So the
content is kept aside first: little in memory, more in an unnamed file, at most `COPY_FILE_BYTES_MAX`.
"""

import errno
import json
import posixpath
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, Final, cast

import anyio
import anyio.to_thread
import structlog
from pydantic import TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ramet.api.errors import error_body, invalid, status_of, to_wire
from ramet.api.ports import FleetPort
from ramet.core.errors import Broken, Exhausted, Invalid, RametError, Unsupported
from ramet.wire_api.files import COPY_MESSAGE_BYTES_MAX, FROM_GUEST, TO_GUEST, CopyStart
from ramet.wire_api.tar import END_OF_ARCHIVE, Entry, EntryEnd, Kind, Piece, TarReader, header, padding

START_TIMEOUT_S: Final = 30.0  # From the handshake to the first message.
COPY_FILE_BYTES_MAX: Final = 16 << 30
MEMORY_BYTES_MAX: Final = 1 << 20  # Of a file on its way to a guest; more is kept on disk.
SPOOL_FOLDER: Final = Path("/var/tmp")  # Not /tmp, which is memory on many hosts.
READ_BYTES: Final = 256 << 10
PARENT_MODE: Final = 0o755
PERMISSION_BITS: Final = 0o777  # The protocol has no more.

_START: Final = TypeAdapter(CopyStart)
_ZEROS: Final = bytes(COPY_MESSAGE_BYTES_MAX)
_NS_PER_S: Final = 1_000_000_000
_log = structlog.get_logger(__name__)


class Copy:
    """One accepted connection: one file or folder to the guest, or one tree from it."""

    def __init__(self, websocket: WebSocket, fleet: FleetPort, ref: str) -> None:
        self._websocket = websocket
        self._fleet = fleet
        self._ref = ref
        self._path = ""

    async def run(self) -> None:
        """Serve it to its end.

        Raises:
            WebSocketDisconnect: the client left before.
        """
        try:
            start = await self._start()
            self._path = start.guest_path
            if start.direction == TO_GUEST:
                await self._to_guest(start)
            else:
                await self._from_guest(start)
        except RametError as error:
            await self._end_with(error)
            return
        await self._websocket.close()

    async def _start(self) -> CopyStart:
        with anyio.move_on_after(START_TIMEOUT_S):
            message = await self._receive()
            if not isinstance(message, str):
                raise Invalid("The first message must be text: what to copy, as JSON")
            try:
                start = _START.validate_json(message)
            except ValidationError as error:
                raise Invalid(invalid([dict(problem) for problem in error.errors()]).message) from error
            if start.direction not in (TO_GUEST, FROM_GUEST):
                raise Invalid(f"direction must be {TO_GUEST} or {FROM_GUEST}", field="direction")
            if not start.guest_path or "\0" in start.guest_path:
                raise Invalid("guest_path is empty or holds a NUL", field="guest_path")
            return start
        raise Invalid("The first message did not come in time", remedy="send what to copy first")

    # To the guest

    async def _to_guest(self, start: CopyStart) -> None:
        spool = cast("IO[bytes]", tempfile.SpooledTemporaryFile(MEMORY_BYTES_MAX, dir=_spool_folder()))  # noqa: SIM115 - Closed below.
        try:
            size_bytes = await self._receive_content(spool, start)
            await self._put(start, spool, size_bytes)
        finally:
            spool.close()
        result: dict[str, Any] = {"type": "result", "success": True, "bytes_written": size_bytes}
        await self._send_json(result)

    async def _receive_content(self, spool: IO[bytes], start: CopyStart) -> int:
        """Keep what comes until the end marker; return its length in bytes."""
        size_bytes = 0
        while True:
            message = await self._receive()
            if isinstance(message, str):
                if _type_of(message) == "end":
                    return size_bytes
                raise Invalid("A text message is not the end of the file")
            if start.is_dir and message:
                raise Invalid("A folder has no content")
            size_bytes += len(message)
            if size_bytes > COPY_FILE_BYTES_MAX:
                raise Exhausted(f"The file is larger than {COPY_FILE_BYTES_MAX} bytes", remedy="ramet cp")
            try:
                spool.write(message)
            except OSError as error:
                raise _spool_error(error) from error

    async def _put(self, start: CopyStart, spool: IO[bytes], size_bytes: int) -> None:
        path = posixpath.normpath("/" + start.guest_path)
        there = await self._fleet.stat_path(self._ref, path, follow_links=True)
        if start.is_dir and there.exists and not there.is_dir:
            raise Invalid(f"{path} is a file in the guest, and cannot become a folder")
        if not start.is_dir and there.is_dir:
            raise Invalid(f"{path} is a folder in the guest, and cannot become a file")
        if there.is_dir:
            return  # As with `mkdir -p`.
        folder, missing = await self._existing_parent(path)
        keep_owner = start.uid is not None and start.gid is not None
        entry = Entry(
            name="/".join([*missing, posixpath.basename(path)]),
            kind=Kind.DIRECTORY if start.is_dir else Kind.FILE,
            mode=start.mode & 0o7777,
            size_bytes=size_bytes,
            mtime_ns=time.time_ns(),
            uid=start.uid or 0,
            gid=start.gid or 0,
        )
        await self._fleet.put_archive(
            self._ref, folder, _archive(missing, entry, spool), keep_owner=keep_owner
        )

    async def _existing_parent(self, path: str) -> tuple[str, list[str]]:
        """Return the nearest folder above `path` that is there, and the names missing between."""
        missing: list[str] = []
        folder = posixpath.dirname(path)
        while folder != "/":
            there = await self._fleet.stat_path(self._ref, folder, follow_links=True)
            if there.is_dir:
                break
            if there.exists or there.error:
                raise Invalid(there.error or f"{folder} is no folder in the guest")
            missing.insert(0, posixpath.basename(folder))
            folder = posixpath.dirname(folder)
        return folder, missing

    # From the guest

    async def _from_guest(self, start: CopyStart) -> None:
        failure: RametError | WebSocketDisconnect | None = WebSocketDisconnect(1006)
        async with (
            self._fleet.open_archive(self._ref, start.guest_path, follow_links=start.follow_links) as chunks,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._watch, tasks.cancel_scope)
            try:
                await self._send_tree(start, chunks)
                failure = None
            except (RametError, WebSocketDisconnect) as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Notice a client that leaves; it has nothing more to say."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass
        scope.cancel()

    async def _send_tree(self, start: CopyStart, chunks: AsyncIterator[bytes]) -> None:
        reader = TarReader()
        root = posixpath.dirname(posixpath.normpath("/" + start.guest_path))
        is_open = False  # An entry was sent, but not its end, which tells whether it is the last.
        current: Entry | None = None
        position = 0
        async for chunk in chunks:
            for event in reader.feed(chunk):
                if isinstance(event, Piece):
                    if current is not None:
                        await self._send_content(event, position)
                        position = event.offset + len(event.data)
                elif isinstance(event, EntryEnd):
                    if current is not None:
                        await self._send_hole(current.size_bytes - position)
                else:
                    current = event if _can_tell(event) else None
                    position = 0
                    if event.kind in (Kind.FIFO, Kind.OTHER):
                        continue
                    if is_open:
                        await self._send_json({"type": "end", "final": False})
                    is_open = True
                    if current is None:
                        await self._send_linked(root, event)
                    else:
                        await self._send_header(current)
        reader.close()
        if not is_open:
            raise Unsupported(
                f"{start.guest_path} is neither a file nor a folder nor a symbolic link",
                remedy="copy files, folders and links",
            )
        await self._send_json({"type": "end", "final": True})

    async def _send_linked(self, root: str, entry: Entry) -> None:
        """Send a further name of a file that was sent before; the protocol has no hard links."""
        path = posixpath.join(root, entry.link)
        async with self._fleet.open_archive(self._ref, path, follow_links=False) as chunks:
            reader = TarReader()
            found: Entry | None = None
            position = 0
            async for chunk in chunks:
                for event in reader.feed(chunk):
                    if isinstance(event, Piece):
                        await self._send_content(event, position)
                        position = event.offset + len(event.data)
                    elif isinstance(event, Entry):
                        if found is not None or event.kind is not Kind.FILE:
                            raise Broken(f"{path} is no longer a file")
                        found = event
                        await self._send_header(event, name=entry.name)
            reader.close()
            if found is None:
                raise Broken(f"{path} is no longer a file")
            await self._send_hole(found.size_bytes - position)

    async def _send_header(self, entry: Entry, *, name: str | None = None) -> None:
        is_symlink = entry.kind is Kind.SYMLINK
        value: dict[str, Any] = {
            "type": "header",
            "path": _printable(posixpath.normpath(name or entry.name)),
            "mode": entry.mode & PERMISSION_BITS,
            "is_dir": entry.kind is Kind.DIRECTORY,
            "is_symlink": is_symlink,
            "size": 0 if entry.kind is not Kind.FILE else entry.size_bytes,
            "mtime": max(0, entry.mtime_ns // _NS_PER_S),
            "uid": entry.uid,
            "gid": entry.gid,
        }
        await self._send_json(value | ({"link_target": _printable(entry.link)} if is_symlink else {}))

    async def _send_content(self, piece: Piece, position: int) -> None:
        await self._send_hole(piece.offset - position)
        for at in range(0, len(piece.data), COPY_MESSAGE_BYTES_MAX):
            await self._websocket.send_bytes(piece.data[at : at + COPY_MESSAGE_BYTES_MAX])

    async def _send_hole(self, length: int) -> None:
        while length > 0:
            await self._websocket.send_bytes(_ZEROS[:length])
            length -= len(_ZEROS)

    # Messages

    async def _receive(self) -> str | bytes:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        data: bytes | None = message.get("bytes")
        return data if data is not None else str(message.get("text") or "")

    async def _end_with(self, error: RametError) -> None:
        if self._websocket.client_state is not WebSocketState.CONNECTED:
            return
        if status_of(error) >= 500:
            _log.error("copy_failed", code=error.code, instance=self._ref, exc_info=error)
        # `message` and `path` are what the official client reads; the rest is additive.
        told = {**error_body(to_wire(error)), "message": str(error)}
        await self._send_json({"type": "error", "path": self._path, **told})
        await self._websocket.close()

    async def _send_json(self, value: dict[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(value, separators=(",", ":")))


async def _archive(missing: list[str], entry: Entry, spool: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield an archive of the folders `missing`, and of `entry` with the content of `spool`."""
    for count in range(1, len(missing) + 1):
        folder = Entry("/".join(missing[:count]), Kind.DIRECTORY, PARENT_MODE, mtime_ns=entry.mtime_ns)
        yield header(folder)
    yield header(entry)
    spool.seek(0)
    while data := await anyio.to_thread.run_sync(spool.read, READ_BYTES):
        yield data
    yield padding(entry.size_bytes) + END_OF_ARCHIVE


def _can_tell(entry: Entry) -> bool:
    """Return whether the protocol has a header for `entry`."""
    return entry.kind in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)


def _type_of(message: str) -> object:
    try:
        value = json.loads(message)
    except ValueError as error:
        raise Invalid("A text message is not JSON") from error
    return value.get("type") if isinstance(value, dict) else None


def _printable(name: str) -> str:
    """Return `name` as JSON can carry it; bytes that are no UTF-8 become replacement characters."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _spool_folder() -> str | None:
    return str(SPOOL_FOLDER) if SPOOL_FOLDER.is_dir() else None


def _spool_error(error: OSError) -> RametError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"The host has no room for the file in {SPOOL_FOLDER}", remedy="ramet cp needs none")
    return Broken(f"The file could not be kept aside in {SPOOL_FOLDER}: {error.strerror}")
