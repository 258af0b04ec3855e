"""One long-lived `nft -i`, spoken to in transactions: 0.5 ms each, where a process apiece costs 7 ms.

nft answers success with silence. So every transaction, one line, is followed by a line that cannot be parsed
and has a number in it: whatever nft prints before it complains about that number is the answer.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Final

import anyio

from ramet.net.errors import FirewallFailed

ANSWER_TIMEOUT_S: Final = 10.0
EXIT_TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 4 << 20  # A full bridge is 60 kB; an error quotes the line it is about.
ERROR_CHARS_MAX: Final = 300
TRANSACTIONS_PER_PROCESS_MAX: Final = 10_000  # nft keeps every line it was given, as history.

_READ_BYTES: Final = 1 << 16
_MARK: Final = "ramet_answered_"
# nft reads and writes ~/.nft.history; errors are matched in English.
_ENVIRONMENT: Final[Mapping[str, str]] = {"HOME": "/nonexistent", "LC_ALL": "C", "TERM": "dumb"}


class NftRefused(FirewallFailed):
    """nft did not accept the transaction; nothing of it was done."""

    code = "firewall_refused"


class Nft:
    """An `nft -i` in the daemon's network namespace, started when first needed and again when it ended.

    One transaction at a time: the caller sees to that.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._count = 0
        self.start_count = 0

    @property
    def pid(self) -> int | None:
        """The process that took the last transaction, if it was not given up since."""
        return None if self._process is None else self._process.pid

    async def run(self, line: str) -> str:
        """Have the commands of `line`, separated by semicolons, done all or none; return what nft printed.

        Raises:
            NftRefused: nothing was done.
            FirewallFailed: nft is not there, died or did not answer: all was done, or nothing.
        """
        assert "\n" not in line
        if self._count >= TRANSACTIONS_PER_PROCESS_MAX:
            await self.close()
        process = self._process or await self._start()
        self._count += 1
        mark = f"{_MARK}{self._count}\n"
        answered = False
        try:
            with anyio.fail_after(ANSWER_TIMEOUT_S):
                answer = await _ask(process, f"{line}\n{mark}", mark)
            answered = True
        except (OSError, TimeoutError) as error:
            raise FirewallFailed("nft did not answer", line=line[:ERROR_CHARS_MAX]) from error
        finally:
            if not answered:
                self._kill()
        if "Error:" in answer:
            said = answer.partition("Error:")[2].strip().partition("\n")[0]
            raise NftRefused(f"nft refused: {said}"[:ERROR_CHARS_MAX], line=line[:ERROR_CHARS_MAX])
        return answer

    async def close(self) -> None:
        """End the process. What it did stays. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(EXIT_TIMEOUT_S):
                await process.wait()
                return
            process.kill()
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {**_ENVIRONMENT, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
        try:
            self._process = await asyncio.create_subprocess_exec(
                "nft",
                "-i",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # A terminal's Ctrl-C is for us.
            )
        except OSError as error:
            raise FirewallFailed(
                f"nft cannot be started: {error.strerror}", remedy="install nftables"
            ) from error
        self._count = 0
        self.start_count += 1
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()  # The event loop reaps it.


async def _ask(process: asyncio.subprocess.Process, question: str, mark: str) -> str:
    """Return what nft prints for `question` before its complaint about `mark`, the last line of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(question.encode())
    await process.stdin.drain()
    answer = b""
    end = mark.encode()
    while True:
        # The complaint is three lines: "Error: ...", the line with the mark, and a caret below it.
        before, found, after = answer.rpartition(end)
        if found and after.endswith(b"\n"):
            return before.rpartition(b"Error:")[0].decode(errors="replace")
        data = await process.stdout.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("nft ended")
        answer += data
        if len(answer) > ANSWER_BYTES_MAX:
            raise ConnectionAbortedError("nft printed too much")
