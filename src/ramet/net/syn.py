"""Which frames wake a sleeper: those that ask its address for a TCP connection, and no others."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ramet.linux.bpf import (
    KEEP,
    Instruction,
    drop_if,
    drop_if_any,
    drop_unless,
    keep_bits,
    load_byte,
    load_byte_behind,
    load_half,
    load_half_behind,
    load_header_length,
    load_word,
)

# Where things are in a frame.
_ETHER_TYPE_AT: Final = 12
_IP_AT: Final = 14
_IP_FRAGMENT_AT: Final = _IP_AT + 6
_IP_PROTOCOL_AT: Final = _IP_AT + 9
_IP_SOURCE_AT: Final = _IP_AT + 12
_IP_DESTINATION_AT: Final = _IP_AT + 16
_TCP_PORT_AT: Final = _IP_AT + 2  # Behind the header's length, as is what follows.
_TCP_FLAGS_AT: Final = _IP_AT + 13

_ETHER_TYPE_IPV4: Final = 0x0800
_PROTOCOL_TCP: Final = 6
_FRAGMENT_OFFSET: Final = 0x1FFF
_FIN_SYN_RST_ACK: Final = 0x17
_SYN: Final = 0x02


@dataclass(frozen=True, slots=True)
class Ignored:
    """Whose connections, and to which ports, wake nobody."""

    sources: tuple[IPv4Network, ...] = ()
    ports: tuple[int, ...] = ()


NOTHING_IGNORED: Final = Ignored()


def syn_filter(address: IPv4Address, ignored: Ignored = NOTHING_IGNORED) -> list[Instruction]:
    """Return the program that keeps the first packets of TCP connections to `address`."""
    program = [
        load_half(_ETHER_TYPE_AT),
        *drop_unless(_ETHER_TYPE_IPV4),
        load_byte(_IP_PROTOCOL_AT),
        *drop_unless(_PROTOCOL_TCP),
        load_word(_IP_DESTINATION_AT),
        *drop_unless(int(address)),
        load_half(_IP_FRAGMENT_AT),
        *drop_if_any(_FRAGMENT_OFFSET),
        load_header_length(_IP_AT),
        load_byte_behind(_TCP_FLAGS_AT),
        keep_bits(_FIN_SYN_RST_ACK),
        *drop_unless(_SYN),
    ]
    if ignored.ports:
        program.append(load_half_behind(_TCP_PORT_AT))
        for port in ignored.ports:
            program.extend(drop_if(port))
    for network in ignored.sources:
        program += [load_word(_IP_SOURCE_AT), keep_bits(int(network.netmask))]
        program.extend(drop_if(int(network.network_address)))
    return [*program, KEEP]
