"""Have another process make one system call.

Some things only a process can get for itself, a userfaultfd(2) of its memory among them. So its main thread
is stopped for some 0.2 ms, made to run the call from where its own vDSO has one, and put back exactly where
it was (ptrace(2)). If we are killed in between, the process is killed too, so this is for processes that have
nothing to lose yet. x86-64 alone.
"""

import ctypes
import os
import signal
from typing import Final

from ramet.linux.process import read_maps

# include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h
_PTRACE_SINGLESTEP: Final = 9
_PTRACE_GETREGS: Final = 12
_PTRACE_SETREGS: Final = 13
_PTRACE_DETACH: Final = 17
_PTRACE_CONT: Final = 7
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_PTRACE_O_EXITKILL: Final = 1 << 20
_PTRACE_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000  # include/uapi/linux/wait.h

_SYSCALL: Final = b"\x0f\x05"  # The instruction.
_ERRNO_MAX: Final = 4095

_libc = ctypes.CDLL(None, use_errno=True)


class _Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _names = (
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi"),
        *(
            "rdi",
            "orig_rax",
            "rip",
            "cs",
            "eflags",
            "rsp",
            "ss",
            "fs_base",
            "gs_base",
            "ds",
            "es",
            "fs",
            "gs",
        ),
    )
    _fields_ = tuple((name, ctypes.c_uint64) for name in _names)


def call_in(pid: int, number: int, *arguments: int) -> int:
    """Have process `pid` make system call `number` with up to three `arguments`; returns its result.

    Blocks; all of it happens in the calling thread.

    Raises:
        OSError: the call failed, the process is gone or already traced, or it is not ours to trace.
    """
    place = _find_syscall(pid)
    _ptrace(_PTRACE_SEIZE, pid, data=_PTRACE_O_EXITKILL)
    postponed = 0
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        while (stopped := _wait_stopped(pid)) >> 16 != _PTRACE_EVENT_STOP:
            _ptrace(_PTRACE_CONT, pid, data=os.WSTOPSIG(stopped & 0xFFFF))
        before = _read_registers(pid)
        try:
            inside = _Registers.from_buffer_copy(before)
            inside.rip, inside.rax = place, number
            inside.orig_rax = (1 << 64) - 1  # Not in a call that the kernel would want to restart.
            for name, value in zip(("rdi", "rsi", "rdx"), arguments, strict=False):
                setattr(inside, name, value)
            _write_registers(pid, inside)
            postponed = _step(pid)
            result = ctypes.c_int64(_read_registers(pid).rax).value
        finally:
            _write_registers(pid, before)
    finally:
        _ptrace(_PTRACE_DETACH, pid, data=postponed)
    if -_ERRNO_MAX <= result < 0:
        raise OSError(-result, f"system call {number} in process {pid}: {os.strerror(-result)}")
    return result


def _find_syscall(pid: int) -> int:
    """Return the address of a system call instruction in the process."""
    for start, end, _, path in read_maps(pid):
        if path == "[vdso]":
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                return start + memory.read(end - start).index(_SYSCALL)
    raise ProcessLookupError(f"process {pid} has no vDSO: it is gone")


def _step(pid: int) -> int:
    """Run one instruction; returns a signal that came in between and is still to be delivered, or 0."""
    postponed = 0
    while True:
        _ptrace(_PTRACE_SINGLESTEP, pid)
        number = os.WSTOPSIG(_wait_stopped(pid) & 0xFFFF)
        if number == signal.SIGTRAP:
            return postponed
        postponed = number


def _wait_stopped(pid: int) -> int:
    _, status = os.waitpid(pid, _WALL)
    if not os.WIFSTOPPED(status & 0xFFFF):
        raise ProcessLookupError(f"process {pid} ended while it was traced")
    return status


def _read_registers(pid: int) -> _Registers:
    registers = _Registers()
    _ptrace(_PTRACE_GETREGS, pid, data=ctypes.addressof(registers))
    return registers


def _write_registers(pid: int, registers: _Registers) -> None:
    _ptrace(_PTRACE_SETREGS, pid, data=ctypes.addressof(registers))


def _ptrace(request: int, pid: int, *, data: int = 0) -> None:
    call = _libc.ptrace
    if call(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace of process {pid}: {os.strerror(number)}")
