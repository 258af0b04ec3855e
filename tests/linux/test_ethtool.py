"""Whether an interface has a link, as the kernel knows it now."""

import subprocess

import pytest

from ramet.linux.ethtool import has_link
from tests.net.namespaces import own_namespace


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def test_a_pair_has_a_link_while_both_ends_are_up() -> None:
    with own_namespace():
        ip("link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1")
        ip("link", "set", "veth0", "up")
        assert not has_link("veth0")
        ip("link", "set", "veth1", "up")
        assert has_link("veth0")
        ip("link", "set", "veth1", "down")
        assert not has_link("veth0")


def test_without_an_interface_there_is_no_answer() -> None:
    with own_namespace(), pytest.raises(OSError, match="No such device"):
        has_link("none")
