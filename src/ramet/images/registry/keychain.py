"""Docker's own store of credentials: `config.json` and the programs it names.

It is read at each use, so a `docker login` holds at once. A helper is a stranger's program: it gets the
registry's name on stdin, little time, and its output is bounded.
"""

import base64
import binascii
import json
import os
import re
import select
import signal
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Final, TypeGuard

from ramet.images.errors import CredentialsUnreadable
from ramet.images.limits import MIB
from ramet.images.offload import run_stoppable
from ramet.images.reference import DEFAULT_REGISTRY
from ramet.images.registry.config import Credentials

CONFIG_BYTES_MAX: Final = MIB
HELPER_TIMEOUT_S: Final = 30.0
HELPER_OUTPUT_BYTES_MAX: Final = 64 << 10
CHECK_INTERVAL_S: Final = 0.1  # Between two looks at whether the pull has been cancelled.

_HUB_KEY: Final = "https://index.docker.io/v1/"  # What docker login files docker.io under.
_HUB_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY_USER: Final = "<token>"
_ABSENT: Final = ("credentials not found", "no credentials")


class Keychain:
    """What `docker login` left in `folder`; None is an empty one.

    Args:
        helper_timeout_s: for one answer of a helper.
    """

    def __init__(self, folder: Path | None, *, helper_timeout_s: float = HELPER_TIMEOUT_S) -> None:
        self._folder = folder
        self._helper_timeout_s = helper_timeout_s

    async def find(self, registry: str) -> Credentials | None:
        """Return the credentials for "host[:port]", or docker.io; None without.

        Raises:
            CredentialsUnreadable: config.json is not what Docker writes, or a helper fails.
        """
        config = self._read()
        key = _HUB_KEY if registry == DEFAULT_REGISTRY else registry
        helpers = _mapping(config.get("credHelpers"), "credHelpers")
        helper = helpers.get(registry, helpers.get(key, config.get("credsStore")))
        if helper:
            found = await self._ask(helper, key)
            if found is not None:
                return found
        auths = _mapping(config.get("auths"), "auths")
        for name, entry in auths.items():
            if _is_same(name, registry):
                found = _from_entry(_mapping(entry, "auths"), name)
                if found:
                    return found
        return None

    def _read(self) -> Mapping[str, object]:
        if self._folder is None:
            return {}
        file = self._folder / "config.json"
        try:
            # A pipe in its place would block the daemon.
            with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise CredentialsUnreadable(f"{file} is not a regular file")
                content = stream.read(CONFIG_BYTES_MAX + 1)
            if len(content) > CONFIG_BYTES_MAX:
                raise CredentialsUnreadable(f"{file} has more than {CONFIG_BYTES_MAX} bytes")
            return _mapping(json.loads(content), str(file))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise CredentialsUnreadable(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CredentialsUnreadable(f"{file} is not JSON", remedy=f"mend or remove {file}") from error

    async def _ask(self, helper: object, key: str) -> Credentials | None:
        if not isinstance(helper, str) or _HELPER.fullmatch(helper) is None:
            raise CredentialsUnreadable(f"{str(helper)[:100]!r} cannot be a credential helper's name")
        program = f"docker-credential-{helper}"
        try:
            output, code = await run_stoppable(
                lambda check: _converse(program, key, self._helper_timeout_s, check)
            )
        except OSError as error:
            raise CredentialsUnreadable(
                f"The credential helper {program} cannot be started: {error.strerror}",
                remedy=f"install {program}, or take it out of Docker's config.json",
            ) from error
        text = output.decode(errors="replace")
        if code != 0:
            if any(words in text.lower() for words in _ABSENT):
                return None
            raise CredentialsUnreadable(f"The credential helper {program} failed with exit code {code}")
        return _from_helper(text, program)


def _converse(program: str, key: str, timeout_s: float, check: Callable[[], None]) -> tuple[bytes, int]:
    """Return what the helper writes, and its exit code; leave nothing of it, nor of what it started. Blocks.

    Raises:
        CredentialsUnreadable: it wrote too much, or did not end in time.
        OSError: it cannot be started.
    """
    with Popen(
        [program, "get"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, bufsize=0, start_new_session=True
    ) as process:
        try:
            output = _read_answer(process, program, key, timeout_s, check)
        finally:
            # Until `wait` its number is nobody else's, also if it has ended and left others in its group.
            os.killpg(process.pid, signal.SIGKILL)
        return output, process.wait()


def _read_answer(
    process: "Popen[bytes]", program: str, key: str, timeout_s: float, check: Callable[[], None]
) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # It did not read; its answer may be good all the same.
        process.stdin.write(key.encode() + b"\n")
    process.stdin.close()
    until = time.monotonic() + timeout_s

    def wait_readable(descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while time.monotonic() < until:
            check()
            if poll.poll(CHECK_INTERVAL_S * 1000):
                return
        raise CredentialsUnreadable(
            f"The credential helper {program} did not answer within {timeout_s:.0f} s"
        )

    output = bytearray()
    while len(output) <= HELPER_OUTPUT_BYTES_MAX:
        wait_readable(process.stdout.fileno())
        piece = process.stdout.read(HELPER_OUTPUT_BYTES_MAX)
        if not piece:
            break
        output += piece
    else:
        raise CredentialsUnreadable(
            f"The credential helper {program} wrote more than {HELPER_OUTPUT_BYTES_MAX} bytes"
        )
    ended = os.pidfd_open(process.pid)  # Waits for its end without taking note of it.
    try:
        wait_readable(ended)
    finally:
        os.close(ended)
    return bytes(output)


def _from_helper(text: str, program: str) -> Credentials | None:
    try:
        answer = _mapping(json.loads(text), program)
    except (ValueError, RecursionError) as error:
        raise CredentialsUnreadable(f"The credential helper {program} did not answer in JSON") from error
    username, secret = answer.get("Username", ""), answer.get("Secret", "")
    if not _is_text(username) or not _is_text(secret):
        raise CredentialsUnreadable(f"The credential helper {program} answered without a name and secret")
    if username == _IDENTITY_USER:
        return Credentials(identity_token=secret)
    return Credentials(username=username, password=secret) or None


def _from_entry(entry: Mapping[str, object], name: str) -> Credentials:
    def text(key: str) -> str:
        value = entry.get(key, "")
        if not _is_text(value):
            raise CredentialsUnreadable(f"Docker's config.json: {key} of {name[:100]!a} is not a string")
        return value

    username, password = text("username"), text("password")
    if text("auth"):
        try:
            username, _, password = base64.b64decode(text("auth"), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise CredentialsUnreadable(
                f"Docker's config.json: auth of {name[:100]!r} is not base64"
            ) from error
    return Credentials(username, password.rstrip("\0"), text("identitytoken"), text("registrytoken"))


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether `value` can be sent; JSON can hold half a character (a lone surrogate)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_same(name: str, registry: str) -> bool:
    host = name.partition("://")[2] or name
    host = host.partition("/")[0]
    return host in _HUB_HOSTS if registry == DEFAULT_REGISTRY else host == registry


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CredentialsUnreadable(f"{what[:200]} does not hold an object, as Docker's config.json should")
    return value
