"""What the kernel of the calling thread's network namespace limits, as the kernel tells it."""

from ramet.linux import netlink, tc


def rates() -> dict[str, int]:
    """Return the rate in bytes per second of every token bucket, by the name of its interface."""
    with netlink.RouteSocket() as route:
        names = {link.index: link.name for link in route.links()}
        return {names[index]: rate for index, rate in tc.list_rates(route).items()}
