"""How the guest's agent is reached where the VMM has a vsock and no serial ports.

The VMM has a unix socket on the host's side. Who connects to it says `CONNECT <port>` on a line of its own
and is answered `OK <port of the host's side>`, or hung up on as long as nobody listens there in the guest;
from then on both sides speak the guest protocol. A socket of that kind is known by its name's end.
"""

from typing import Final

AGENT_PORT: Final = 1024
"""Where the agent listens."""
OUTPUT_PORT: Final = 1025
"""Where the workload's output is to be had."""
SOCKET_SUFFIX: Final = ".vsock"
ANSWER_BYTES_MAX: Final = 32
"""Of `OK 4294967295` and its newline, and then some."""
