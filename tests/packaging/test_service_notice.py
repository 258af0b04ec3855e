"""What the service manager is told."""

import os
import socket
from pathlib import Path

import pytest

from ramet.linux.service import ServiceNotice, ServiceSilent


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_readiness_arrives_at_either_kind_of_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@ramet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address if kind == "path" else f"\0{address[1:]}")
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        ServiceNotice.from_environment().say("READY=1")
        assert manager.recv(100) == b"READY=1"
        assert "NOTIFY_SOCKET" not in os.environ  # A VMM must not speak for us.


def test_where_nobody_listens_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceNotice.from_environment().say("READY=1")


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceSilent):
        ServiceNotice(str(tmp_path / "gone")).say("READY=1")
