"""Bytes over an interface are told by its name, in the caller's network namespace."""

import socket

import pytest

from ramet.linux.traffic import read_traffic
from tests.net.namespaces import own_namespace

pytestmark = pytest.mark.netns


def test_what_was_sent_and_received_is_counted() -> None:
    with own_namespace():
        assert read_traffic("lo") == (0, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(bytes(1000), ("127.0.0.1", 9))
        received_bytes, sent_bytes = read_traffic("lo")
        assert received_bytes == sent_bytes >= 1000
        assert read_traffic("l") == read_traffic("nobody") == (0, 0)
