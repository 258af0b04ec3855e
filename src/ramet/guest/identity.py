"""Telling a guest who it is.

A child is asleep, with its parent's identity, when we connect to it; its hello and its identity are sent
at once and lie in the socket until its processor runs, so it is itself one round trip after it woke.
Saying both again does little harm: the guest forgets what came before a hello, and being told the same
twice changes nothing but its clock and its entropy.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.guest.channel import Channel, OnEvent, open_channel_with
from ramet.guest.errors import IdentityNotTaken
from ramet.wire.messages import Identity, IdentityAnswer, Network

ENTROPY_BYTES: Final = 64
IDENTIFY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    """Who a guest is to be, without what must be fresh each time it is said. `machine_id`: 32 hex digits."""

    hostname: str
    machine_id: str
    network: Network | None = None

    def fresh(self) -> Identity:
        """Return the message, with the time of now and entropy that nobody else has."""
        return Identity(
            hostname=self.hostname,
            machine_id=self.machine_id,
            clock_ns=time.time_ns(),
            entropy=os.urandom(ENTROPY_BYTES),
            network=self.network,
        )


async def identify_child(
    socket_path: Path, identity: GuestIdentity, *, timeout_s: float, on_event: OnEvent | None = None
) -> tuple[Channel, IdentityAnswer]:
    """Connect to a guest that is about to wake in a child, and make it itself: one round trip.

    May be called before the guest runs; `timeout_s` then includes the time until it does. Execs that the
    parent's host had open are killed in the child.

    `ran_before_identity` of the answer is about the last time the identity was said: if
    `channel.hello_count` is not 1, the child may have been thawed by an earlier saying.

    Raises:
        GuestUnreachable: no answer in time, or the VMM hung up.
        GuestMisbehaved: it broke the protocol.
        GuestRefused: a step failed (`identify_failed`); the workload is still frozen.
        GuestVersionUnsupported: the guest speaks another version.
        IdentityNotTaken: it says it is somebody else.
    """
    channel, answer = await open_channel_with(
        socket_path,
        lambda: ("identify", identity.fresh().to_json()),
        streams="kill",
        timeout_s=timeout_s,
        on_event=on_event,
    )
    try:
        return channel, _judge(channel, identity, answer)
    except BaseException:
        await channel.aclose()
        raise


async def identify(
    channel: Channel, identity: GuestIdentity, *, timeout_s: float = IDENTIFY_TIMEOUT_S
) -> IdentityAnswer:
    """Make the guest behind an open channel `identity`. Raises as `identify_child`."""
    pending = channel.send_request("identify", identity.fresh().to_json())
    return _judge(channel, identity, await pending.wait(timeout_s))


def _judge(channel: Channel, asked: GuestIdentity, answer: dict[str, object]) -> IdentityAnswer:
    with channel.judging():
        taken = IdentityAnswer.from_json(answer)
    network = asked.network
    wanted = (asked.hostname, network and network.mac.lower(), network and network.ip)
    found = (taken.hostname, network and taken.mac and taken.mac.lower(), network and taken.ip)
    if wanted != found:
        raise IdentityNotTaken(
            "the guest did not take its identity",
            asked=[str(part) for part in wanted],
            taken=[str(part) for part in found],
        )
    return taken
