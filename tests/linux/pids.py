"""Processes with pids of our choice."""

import ctypes
import os
import signal
import struct
from typing import Final

_SYS_CLONE3: Final = 435  # asm-generic/unistd.h; the same on x86-64.


def start_as(pid: int, argv: tuple[str, ...]) -> None:
    """Start a program with a pid that is free, as the kernel may do when its numbers have gone round.

    By clone3(2) with `set_tid`, for root. The caller waits for it.

    Raises:
        OSError: the pid is taken.
    """
    pids = (ctypes.c_int * 1)(pid)
    # clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack (2), tls, set_tid (2), cgroup.
    arguments = struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(pids), 1, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(_SYS_CLONE3, ctypes.create_string_buffer(arguments), len(arguments))
    if found == 0:
        os.execv(argv[0], argv)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
