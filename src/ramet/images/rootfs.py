"""A folder into one read-only EROFS image, the same bytes for the same folder.

`mkfs.erofs` differs much between distributions (Debian 12 has version 1.5), so what it can do is read from
its own help text. Without a given time it would write the clock into the superblock: SOURCE_DATE_EPOCH, set
to the youngest file, fixes it and changes no file's time.
"""

import asyncio
import errno
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from ramet.images.errors import ConversionFailed, storage_error

PROGRAM: Final = "mkfs.erofs"
OUTPUT_BYTES_MAX: Final = 2048

# Namespace of the file systems' UUIDs; minted once for this project.
_UUIDS: Final = uuid.UUID("5b0c9e0e-5f0e-4f4c-9a57-2f7a0f6d3c11")


@dataclass(frozen=True, slots=True)
class ErofsFeatures:
    """What this host's mkfs.erofs can do.

    Attributes:
        lz4: compress with lz4.
        uuid: take the file system's UUID.
        quiet: keep silent.
    """

    lz4: bool
    uuid: bool
    quiet: bool


async def detect_features() -> ErofsFeatures:
    """Ask mkfs.erofs what it can do.

    Raises:
        ConversionFailed: it is not installed.
    """
    _, output = await _run([PROGRAM, "--help"], {})
    listed = [line for line in output.splitlines() if "compressors" in line or line.strip().startswith("lz4")]
    return ErofsFeatures(
        lz4=any("lz4" in line for line in listed),
        uuid="-U" in output,
        quiet="--quiet" in output,
    )


async def make_rootfs(
    folder: Path, file: Path, digest: str, mtime_s_max: int, features: ErofsFeatures
) -> None:
    """Write the tree in `folder` as an EROFS image to `file`.

    Args:
        digest: of the image; decides the file system's UUID.
        mtime_s_max: no file in `folder` is younger; seconds since 1970.

    Raises:
        ConversionFailed: mkfs.erofs is missing or failed.
        StorageFull: the disk is full.
    """
    command = [PROGRAM]
    if features.quiet:
        command.append("--quiet")
    if features.lz4:
        command.append("-zlz4")
    if features.uuid:
        command.append(f"-U{uuid.uuid5(_UUIDS, digest)}")
    environment = {"SOURCE_DATE_EPOCH": str(mtime_s_max), "TMPDIR": str(file.parent)}
    code, output = await _run([*command, str(file), str(folder)], environment)
    if code != 0:
        if "No space left" in output:
            raise storage_error(OSError(errno.ENOSPC, output))
        last = output.strip()[-OUTPUT_BYTES_MAX:]
        raise ConversionFailed(f"{PROGRAM} ended with code {code}: {last}", exit_code=code)


async def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Return the exit code and the output; ends the process if we are cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", **environment},
        )
    except FileNotFoundError as error:
        raise ConversionFailed(f"{PROGRAM} is not installed", remedy="apt install erofs-utils") from error
    except OSError as error:
        raise ConversionFailed(f"{PROGRAM} cannot be started: {error.strerror}") from error
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
