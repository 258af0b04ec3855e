"""Docker's own store of credentials: `config.json` and the programs it names.

It is read at each use, so a `docker login` holds at once. A helper is a stranger's program: it gets the
registry's name on stdin, little time, and its output is bounded.
"""

import base64
import binascii
import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Final

import anyio
from anyio.abc import Process

from ramet.images.errors import CredentialsUnreadable
from ramet.images.limits import MIB
from ramet.images.reference import DEFAULT_REGISTRY
from ramet.images.registry.config import Credentials

CONFIG_BYTES_MAX: Final = MIB
HELPER_TIMEOUT_S: Final = 30.0
HELPER_OUTPUT_BYTES_MAX: Final = 64 << 10

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
            with file.open("rb") as stream:
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
            process = await anyio.open_process(
                [program, "get"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise CredentialsUnreadable(
                f"The credential helper {program} cannot be started: {error.strerror}",
                remedy=f"install {program}, or take it out of Docker's config.json",
            ) from error
        try:
            with anyio.fail_after(self._helper_timeout_s):
                output = await _converse(process, key)
                code = await process.wait()
        except TimeoutError as error:
            raise CredentialsUnreadable(
                f"The credential helper {program} did not answer within {self._helper_timeout_s:.0f} s"
            ) from error
        finally:
            await _end(process)
        if output is None:
            raise CredentialsUnreadable(
                f"The credential helper {program} wrote more than {HELPER_OUTPUT_BYTES_MAX} bytes"
            )
        text = output.decode(errors="replace")
        if code != 0:
            if any(words in text.lower() for words in _ABSENT):
                return None
            raise CredentialsUnreadable(f"The credential helper {program} failed with exit code {code}")
        return _from_helper(text, program)


async def _converse(process: Process, key: str) -> bytes | None:
    """Return what the helper writes, or None if that is too much."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send(key.encode() + b"\n")
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # It did not read; its answer may be good all the same.
    output = bytearray()
    async for piece in process.stdout:
        output += piece
        if len(output) > HELPER_OUTPUT_BYTES_MAX:
            return None
    return bytes(output)


async def _end(process: Process) -> None:
    """Leave nothing of the helper behind, nor of what it started."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:  # Afterwards the number may be another's.
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await process.aclose()


def _from_helper(text: str, program: str) -> Credentials | None:
    try:
        answer = _mapping(json.loads(text), program)
    except (ValueError, RecursionError) as error:
        raise CredentialsUnreadable(f"The credential helper {program} did not answer in JSON") from error
    username, secret = answer.get("Username", ""), answer.get("Secret", "")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise CredentialsUnreadable(f"The credential helper {program} answered without a name and secret")
    if username == _IDENTITY_USER:
        return Credentials(identity_token=secret)
    return Credentials(username=username, password=secret) or None


def _from_entry(entry: Mapping[str, object], name: str) -> Credentials:
    def text(key: str) -> str:
        value = entry.get(key, "")
        if not isinstance(value, str):
            raise CredentialsUnreadable(f"Docker's config.json: {key} of {name[:100]!r} is not a string")
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
