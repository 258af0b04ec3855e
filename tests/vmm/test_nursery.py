"""The warm process that forks fake VMMs."""

import json
import mmap
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from ramet.vmm.fake.driver import MARK
from ramet.vmm.fake.nursery import Nursery


def test_a_vmm_can_be_found_as_soon_as_it_is_said_to_be_there(tmp_path: Path) -> None:
    nursery = Nursery(MARK)
    with ExitStack() as stack:
        stack.callback(nursery.close)
        memory_fd = os.memfd_create("memory")
        stack.callback(os.close, memory_fd)
        os.truncate(memory_fd, mmap.PAGESIZE)
        fds = [memory_fd]
        for _ in range(2):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind("")
            listener.listen(1)
            fds.append(listener.fileno())
        options = {
            "folder": str(tmp_path),
            "layers": [str(tmp_path / "top")],
            "monitor_fd": fds[1],
            "agent_fd": fds[2],
            "memory_fd": memory_fd,  # It waits.
            "changes": None,
        }
        pid = nursery.start(options, output=tmp_path / "vmm.log", fds=fds)
        stack.callback(os.kill, pid, signal.SIGKILL)
        *_, mark, last, _ = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert (mark.decode(), json.loads(last)) == (MARK, options)
