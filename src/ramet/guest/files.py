"""Files of a guest, as tar streams.

The guest does each of these in a process of its own, which stands still while the guest is frozen and is
ended when its caller leaves; a failure on the way is what that process writes to stderr.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Final

from ramet.core.errors import RametError
from ramet.guest.channel import Channel
from ramet.guest.errors import (
    BadArchive,
    GuestDiskFull,
    GuestReadOnly,
    GuestRefused,
    GuestTooOld,
    PathBusy,
    PathInvalid,
    PathIsDirectory,
    PathNotDirectory,
    PathNotFound,
)
from ramet.guest.process import GuestProcess, Output
from ramet.wire.frames import ProtocolError
from ramet.wire.messages import ExitStatus, PathReport, Refusal, load, parse_text

PATH_BYTES_MAX: Final = 4095  # PATH_MAX of linux/limits.h, less its final zero.
REPORT_BYTES_MAX: Final = 65_536
"""What a guest may say about one path, or about why it failed."""

_ERRORS: Final[Mapping[str, tuple[type[RametError], str]]] = {
    "path_not_found": (PathNotFound, ""),
    "not_a_directory": (PathNotDirectory, "name a directory that exists"),
    "is_a_directory": (PathIsDirectory, "choose another name, or remove the directory first"),
    "path_busy": (PathBusy, "write its content from inside: ramet exec"),
    "read_only": (GuestReadOnly, "choose another directory"),
    "no_space": (GuestDiskFull, "remove something in the guest, or start one with a larger disk"),
    "bad_archive": (BadArchive, "check it with tar -t"),
}


class FileCopy(GuestProcess):
    """One of the file operations under way."""

    def __init__(self, channel: Channel, op: str, path: str, *, stdin: bool = False) -> None:
        super().__init__(channel, stdin=stdin)
        self.op = op
        self._path = path
        self._report = bytearray()

    async def data(self) -> AsyncGenerator[bytes, None]:
        """Yield what it writes to stdout, to its end; raises if that end was a failure."""
        async with aclosing(self.output()) as output:
            async for which, chunk in output:
                if which is Output.STDOUT:
                    yield chunk
                elif len(self._report) < REPORT_BYTES_MAX:
                    self._report += chunk
        status = await self.wait()
        if status.code != 0:
            raise self._failure(status)

    def _refused(self, refusal: Refusal) -> None:
        self._fail(_error(self.op, self._path, refusal))

    def _failure(self, status: ExitStatus) -> RametError:
        try:
            report = load(bytes(self._report))
            refusal = Refusal(parse_text(report, "code"), parse_text(report, "message"))
        except ProtocolError:
            refusal = Refusal("internal", f"it ended with code {status.code}, signal {status.signal}")
        return _error(self.op, self._path, refusal)


def _error(op: str, path: str, refusal: Refusal) -> RametError:
    if refusal.code == "unknown_op":
        return GuestTooOld("the program in the guest cannot copy files", remedy="start the instance again")
    if refusal.code not in _ERRORS:
        return GuestRefused(op, refusal.code, refusal.message)
    kind, remedy = _ERRORS[refusal.code]
    return kind(f"in the guest: {refusal.message or path}", remedy=remedy, path=path)


async def stat_path(channel: Channel, path: str, *, follow_links: bool) -> PathReport:
    """Tell what is at `path`; of a symbolic link itself, or of what it leads to.

    Raises:
        PathInvalid, GuestTooOld
        GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`.
    """
    _check(path)
    async with FileCopy(channel, "stat", path) as copy:
        await copy.start({"path": path, "follow_links": follow_links})
        written = bytearray()
        async for chunk in copy.data():
            written += chunk
            if len(written) > REPORT_BYTES_MAX:
                break
    with channel.judging():
        return PathReport.from_json(load(bytes(written)))


@asynccontextmanager
async def open_archive(
    channel: Channel, path: str, *, follow_links: bool
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Read `path`, with all below it, as a POSIX pax tar stream. Leaving early ends the copy.

    Raises:
        PathNotFound, PathInvalid, PathNotDirectory, GuestTooOld: on entering.
        GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`; while reading too.
    """
    _check(path)
    async with FileCopy(channel, "read_archive", path) as copy:
        await copy.start({"path": path, "follow_links": follow_links})
        async with aclosing(copy.data()) as data:
            yield data


async def put_archive(channel: Channel, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool) -> None:
    """Unpack a tar stream into the directory `path`. An error of `chunks` ends the copy and is raised.

    Each file appears whole or not at all; what was unpacked before a failure stays.

    Raises:
        PathNotFound, PathNotDirectory, PathInvalid, PathIsDirectory, PathBusy, GuestReadOnly,
        GuestDiskFull, BadArchive, GuestTooOld
        GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`.
    """
    _check(path)
    async with FileCopy(channel, "write_archive", path, stdin=True) as copy:
        await copy.start({"path": path, "keep_owner": keep_owner})
        async for chunk in chunks:
            await copy.write(chunk)
            if copy.exit is not None:
                break  # It has failed, or has seen the archive's end.
        copy.write_eof()
        async for _ in copy.data():
            pass


def _check(path: str) -> None:
    """Refuse what is no path.

    Raises:
        PathInvalid: it is empty, too long, or has a NUL or half a surrogate pair in it.
    """
    is_text = "\0" not in path and not any("\ud800" <= character <= "\udfff" for character in path)
    if not path or not is_text or len(path.encode()) > PATH_BYTES_MAX:
        raise PathInvalid(
            f"{path[:40]!r} is not a path", remedy=f"use 1 to {PATH_BYTES_MAX} bytes of text without zeros"
        )
