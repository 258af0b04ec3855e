"""The cp command: files and trees between this host and an instance, by the rules of `docker cp`.

Both ways a tar stream goes through this process, which holds a piece of it at a time. What something will be
called is decided before it begins, from what is at both ends.
"""

import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import click

from ramet.cli.options import connect
from ramet.cli.output import write_bytes
from ramet.cli.transfer import shown
from ramet.client import Client
from ramet.client.host_files import (
    HostPathNotDirectory,
    HostPathNotFound,
    HostPathUnsupported,
    about,
    printable,
)
from ramet.client.pack import CHUNK_BYTES, pack
from ramet.client.unpack import unpack
from ramet.core.errors import Conflict, Invalid, NotFound
from ramet.wire_api.files import PathInfo

STREAM: Final = "-"
LINK_COUNT_MAX: Final = 40  # As many as the kernel follows (MAXSYMLINKS of linux/namei.h).


class GuestPathNotFound(NotFound):
    """There is nothing at a path of the guest."""

    code = "path_not_found"


class GuestPathNotDirectory(Invalid):
    """A path of the guest is no directory and would have to be one."""

    code = "not_a_directory"


class GuestPathUnclear(Conflict):
    """What is at a path of the guest cannot be told, or takes no files."""

    code = "path_unclear"
    remedy_default = "name another path in the guest"


@dataclass(frozen=True, slots=True)
class GuestPath:
    """`INSTANCE:PATH`; a relative path begins at the root."""

    instance: str
    path: str

    def __str__(self) -> str:
        return f"{self.instance}:{self.path}"


@dataclass(frozen=True, slots=True)
class Options:
    """What `ramet cp` was told beside the two paths."""

    keep_owner: bool
    follow_link: bool
    quiet: bool


@click.command("cp")
@click.argument("source", metavar="SOURCE", type=click.UNPROCESSED)
@click.argument("destination", metavar="DESTINATION", type=click.UNPROCESSED)
@click.option(
    "-a",
    "--archive",
    is_flag=True,
    help="Keep owners, groups and set-user-id bits, not only modes and times.",
)
@click.option("-L", "--follow-link", is_flag=True, help="Copy what SOURCE leads to if it is a symbolic link.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def cp_command(
    context: click.Context, source: str, destination: str, archive: bool, follow_link: bool, quiet: bool
) -> None:
    """Copy files between this host and a running instance.

    One of SOURCE and DESTINATION is INSTANCE:PATH, the other a path of this host, or - for a tar archive on
    stdin or stdout. A directory is copied with all below it: into DESTINATION if that is a directory, else as
    DESTINATION. SOURCE/. means what is in the directory, without itself. A path of this host that holds a
    colon is written with a slash before it: ./a:b.
    """
    options = Options(archive, follow_link, quiet)
    match _parse(source), _parse(destination):
        case (GuestPath() as there, str() as here):
            _copy_out(connect(context), there, here, options)
        case (str() as here, GuestPath() as there):
            _copy_in(connect(context), here, there, options)
        case (str(), str()):
            raise click.UsageError("Neither path is of an instance; write that one as INSTANCE:PATH")
        case _:
            raise click.UsageError(
                "Both paths are of instances; go through here: ramet cp A:PATH - | ramet cp - B:DIRECTORY"
            )


def _parse(argument: str) -> GuestPath | str:
    """Return what an argument names: a path of this host begins with a slash or dot, or has no colon."""
    instance, colon, path = argument.partition(":")
    if not colon or "/" in instance or argument.startswith("."):
        return argument
    if not instance or not path:
        raise click.UsageError(f"{argument!r} is not INSTANCE:PATH")
    return GuestPath(instance, posixpath.join("/", path))


def _is_content_only(path: str) -> bool:
    return posixpath.basename(path) == "."


# From the guest


def _copy_out(client: Client, source: GuestPath, destination: str, options: Options) -> None:
    if destination == STREAM:
        _write_stream(client, source, options)
        return
    follows = options.follow_link or source.path.endswith(("/", "/."))
    found = _stat(client, source.instance, source.path, follow_links=follows)
    if not found.exists:
        raise GuestPathNotFound(
            f"there is nothing at {source}", remedy=f"look with: ramet exec {source.instance} ls"
        )
    folder, name = _place_here(destination, source.path, found)
    chunks = client.read_archive(source.instance, source.path, follow_links=options.follow_link)
    total_bytes = found.size if found.is_file else None
    is_wrapped = not _is_nameless(source.path)
    with shown(chunks, str(source), total_bytes, quiet=options.quiet) as stream:
        unpack(stream, folder, name=name, is_wrapped=is_wrapped, keep_owner=options.keep_owner)


def _write_stream(client: Client, source: GuestPath, options: Options) -> None:
    if sys.stdout.isatty():
        raise click.UsageError("An archive is nothing for a terminal; redirect it: ramet cp ... - >FILE")
    chunks = client.read_archive(source.instance, source.path, follow_links=options.follow_link)
    with shown(chunks, str(source), None, quiet=options.quiet) as stream:
        for chunk in stream:
            write_bytes(chunk)


def _is_nameless(path: str) -> bool:
    """Return whether an archive of `path` calls its tree "." instead of by its name."""
    last = posixpath.basename(path.rstrip("/"))
    return last in ("", ".", "..")


def _place_here(destination: str, source_path: str, source: PathInfo) -> tuple[str, str | None]:
    """Return the folder to unpack into, and what the copy is called there; None for its content."""
    if not destination:
        raise HostPathNotFound("on this host: the destination is empty", remedy="name one, such as .")
    with about(destination):
        target = os.path.realpath(destination)
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = None
    must_be_folder = destination.endswith(("/", "/."))
    if mode is not None and stat.S_ISDIR(mode):
        if source.is_dir and _is_nameless(source_path):
            return target, None
        return target, posixpath.basename(source_path.rstrip("/"))
    if mode is not None and (source.is_dir or must_be_folder):
        raise HostPathNotDirectory(
            f"on this host: {printable(destination)} is no directory", remedy="choose another destination"
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise HostPathUnsupported(f"on this host: {printable(destination)} is neither a file nor a directory")
    folder, name = os.path.split(target)
    if not os.path.isdir(folder) or (must_be_folder and not source.is_dir):
        missing = destination if os.path.isdir(folder) else folder
        raise HostPathNotFound(
            f"on this host: there is no directory {printable(missing)}",
            remedy=f"make it first: mkdir -p {printable(missing)}",
        )
    return folder, name


# To the guest


def _copy_in(client: Client, source: str, destination: GuestPath, options: Options) -> None:
    if source == STREAM:
        if sys.stdin.isatty():
            raise click.UsageError("An archive does not come from a terminal; redirect stdin: <FILE")
        folder = destination.path
        chunks, total_bytes = _stdin_chunks(), None
    else:
        path = os.path.realpath(source) if options.follow_link else source
        with about(source):
            found = os.stat(path) if path.endswith(("/", "/.")) else os.lstat(path)
        is_folder = stat.S_ISDIR(found.st_mode)
        if not is_folder and source.endswith(("/", "/.")):
            raise HostPathNotDirectory(f"on this host: {printable(source)} is no directory")
        folder, name = _place_there(client, destination, source, is_folder=is_folder)
        chunks, total_bytes = pack(path, name), found.st_size if stat.S_ISREG(found.st_mode) else None
    with shown(chunks, printable(source), total_bytes, quiet=options.quiet) as stream:
        client.write_archive(destination.instance, folder, stream, keep_owner=options.keep_owner)


def _place_there(client: Client, destination: GuestPath, source: str, *, is_folder: bool) -> tuple[str, str]:
    """Return the folder of the guest to unpack into, and the copy's name there; "." for its content."""
    path = destination.path
    found = _stat(client, destination.instance, path, follow_links=True)
    if found.is_dir:
        name = "." if _is_content_only(source) else os.path.basename(os.path.abspath(source)) or "."
        return path, name
    must_be_folder = path.endswith(("/", "/."))
    if found.exists and (is_folder or must_be_folder):
        raise GuestPathNotDirectory(f"{destination} is no directory", remedy="choose another destination")
    if found.exists and not found.is_file:
        raise GuestPathUnclear(f"{destination} is neither a file nor a directory")
    if must_be_folder and not is_folder:
        raise _no_folder(destination.instance, path)
    folder, name = posixpath.split(_end_of_links(client, destination.instance, path.rstrip("/")))
    if not _stat(client, destination.instance, folder, follow_links=True).is_dir:
        raise _no_folder(destination.instance, folder)
    return folder, name


def _no_folder(instance: str, path: str) -> GuestPathNotFound:
    return GuestPathNotFound(
        f"there is no directory {instance}:{path}",
        remedy=f"make it first: ramet exec {instance} mkdir -p {path}",
    )


def _end_of_links(client: Client, instance: str, path: str) -> str:
    """Return where a path of the guest leads, so that what is there is replaced and not the link to it."""
    for _ in range(LINK_COUNT_MAX):
        found = _stat(client, instance, path, follow_links=False)
        if not found.is_symlink or not found.link_target:
            return path
        path = posixpath.join(posixpath.dirname(path), found.link_target)
    raise GuestPathUnclear(f"the links at {instance}:{path} have no end")


def _stat(client: Client, instance: str, path: str, *, follow_links: bool) -> PathInfo:
    found = client.stat_path(instance, path, follow_links=follow_links)
    if found.error is not None:
        raise GuestPathUnclear(f"{instance}:{path} cannot be looked at: {found.error}")
    return found


def _stdin_chunks() -> Iterator[bytes]:
    with about("stdin"):
        while data := os.read(sys.stdin.fileno(), CHUNK_BYTES):
            yield data
