"""What can go wrong between a guest and the uplink, beyond running out of slots."""

from ramet.core.errors import Broken, Conflict


class NetworkFailed(Broken):
    """The kernel refused a change of the network; `errno` is its number."""

    code = "network_failed"

    @classmethod
    def because(cls, doing: str, error: OSError) -> "NetworkFailed":
        """Say that the kernel refused `doing`."""
        return cls(f"the kernel refused to {doing}: {error.strerror}", errno=error.errno)


class FirewallFailed(Broken):
    """nft did not run, did not answer, or refused a transaction."""

    code = "firewall_failed"


class SubnetClash(Conflict):
    """Another interface or route of the host uses addresses of the guests' subnet."""

    code = "subnet_clash"


class BridgeClash(Conflict):
    """An interface has the bridge's name and is something else."""

    code = "bridge_clash"


class TapHeld(Conflict):
    """Somebody, most likely a VMM that has not ended, still holds the TAP."""

    code = "tap_held"


class IfbHeld(Conflict):
    """An interface that is no IFB has the name of one of ours."""

    code = "ifb_held"
