"""Becomes a program in a jail: `python -I -S jail_exec.py PLAN PROGRAM ARGUMENTS...`, as root.

A program of its own, because what it does must happen between fork and exec, where a daemon with threads may
run no Python (a lock that another thread held stays locked). It is the process that the program then is: same
pid, same session, same descriptors.

The program sees a file system of its own, with nothing in it but what the PLAN names, each thing at the path
it has outside; so paths mean the same on both sides, and /proc shows the host the working directory it knows.
It has a user, a group and an IPC namespace of its own, no capability, and can gain none.

Whatever fails is told on standard error, and ends it with 126. Imports the standard library alone.
"""

import ctypes
import errno
import json
import os
import resource
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

EXIT_FAILED: Final = 126
_JOIN_ATTEMPTS_MAX: Final = 100

# sys/mount.h, linux/sched.h, linux/prctl.h, asm/unistd_64.h
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWIPC: Final = 0x08000000
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_COUNT_MAX: Final = 64
_SYS_pivot_root: Final = 155

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Do what the command line says; does not return."""
    plan, argv = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        if plan["cgroup"] is not None:
            _join(**plan["cgroup"])
        _enter(plan["folder"], plan["binds"], plan["devices"], plan["uid"], plan["gid"])
        _give_up_power(plan["uid"], plan["gid"], plan["groups"])
        os.execv(argv[0], argv)
    except OSError as error:
        sys.exit(_fail(f"{error.strerror}: {error.filename or argv[0]}"))


def _fail(reason: str) -> int:
    sys.stderr.write(f"the jail cannot be made: {reason}\n")
    return EXIT_FAILED


def _join(folder: str, limits: Mapping[str, str]) -> None:
    """Make a control group and enter it; a sweep of empty ones may remove it in between."""
    files = {**limits, "cgroup.procs": str(os.getpid())}
    for attempts_left in reversed(range(_JOIN_ATTEMPTS_MAX)):
        try:
            os.makedirs(folder, exist_ok=True)
            for name, text in files.items():
                _write(f"{folder}/{name}", text)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV) or not attempts_left:
                raise


def _enter(
    folder: str,
    binds: Sequence[tuple[str, str]],
    devices: Mapping[str, Any],
    uid: int,
    gid: int,
) -> None:
    """Have a root of our own; `folder` is its mount point meanwhile, and the working directory after."""
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC), "namespaces")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # Opened here: a mount of another namespace cannot be bound, and what is under `folder` is hidden next.
    sources = [(os.open(path, os.O_PATH | os.O_CLOEXEC), path, use) for path, use in binds]
    _mount("jail", folder, "tmpfs", _MS_NOSUID | _MS_NOEXEC, "size=1m,mode=755")
    for source, path, use in sources:
        target = folder + path
        if stat.S_ISDIR(os.fstat(source).st_mode):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        _mount(f"/proc/self/fd/{source}", target, None, _MS_BIND)
        flags = {"run": _MS_RDONLY, "read": _MS_RDONLY | _MS_NOEXEC, "write": _MS_NOEXEC}[use]
        _mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | flags)
    os.makedirs(f"{folder}/proc", mode=0o755)
    # Its own processes only, and of those nothing but what belongs to a process.
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("proc", f"{folder}/proc", "proc", flags, "hidepid=invisible,subset=pid")
    for path, (major, minor) in devices.items():
        os.makedirs(os.path.dirname(folder + path), mode=0o755, exist_ok=True)
        os.mknod(folder + path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(folder + path, uid, gid)
    _mount("none", folder, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)
    os.chdir(folder)
    # The old root comes to lie over the new one, and is taken away.
    _checked(_libc.syscall(_SYS_pivot_root, b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "the old root")
    os.chdir(folder)


def _give_up_power(uid: int, gid: int, groups: Sequence[int]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    for capability in range(_CAPABILITY_COUNT_MAX):
        # EINVAL: that is more than this kernel has.
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) and capability == 0:
            _checked(-1, "capabilities")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if each is None else each.encode() for each in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode()), target)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
