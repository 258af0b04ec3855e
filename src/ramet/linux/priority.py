"""Who goes first where processors are scarce: sched(7).

A process of a session of its own is scheduled as one of a group (autogroup), and niceness counts only among
members of one group; in a control group with a cpu controller there is no such group. So both are said: how
nice the thread is, and how nice its group. What the thread starts, threads and processes, is as nice as any.
"""

import os
import resource
from pathlib import Path
from typing import Final

AUTOGROUP: Final = Path("/proc/self/autogroup")


def go_first(niceness: int, autogroup: Path = AUTOGROUP) -> None:
    """Have the calling thread, and the session that this process leads, go before others.

    A session that somebody else leads is left alone, and so is a kernel without autogroups. A process that
    has been in no session but the first one is in none either: what the kernel tells of it is empty.

    Args:
        niceness: from -20, which goes first, to -1.

    Raises:
        OSError: that is not permitted (it needs CAP_SYS_NICE, or as much by RLIMIT_NICE, which is given up).
    """
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    if os.getsid(0) == os.getpid() and autogroup.exists() and autogroup.read_text():
        autogroup.write_text(str(niceness))
    resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
