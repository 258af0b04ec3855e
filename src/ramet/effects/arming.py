"""Having a sleeper be called: a TAP of its own that waits for the first packet of a connection."""

from collections.abc import Callable

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.effects.end import end_unheld, release
from ramet.effects.site import Site, limits_of
from ramet.net.syn import Ignored


async def arm(site: Site, record: InstanceRecord, on_syn: Callable[[InstanceId], None]) -> None:
    """Have `on_syn` be called, once, when somebody asks a sleeping instance for a connection that counts.

    Raises:
        RametError: it did not work; nothing is there that was not before.
    """
    policy = record.spec.auto_standby
    assert policy is not None, "it says whether traffic wakes"
    await end_unheld(site, record)
    await release(site, record)  # Its VMM may have ended this moment: what was its own goes first.
    ignored = Ignored(policy.ignored_networks, policy.ignored_ports)
    await site.network.arm(record.id, on_syn, limits_of(record.spec), ignored)
