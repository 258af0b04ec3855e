"""Memory that guests give back: what a request asks for, and what is told of each guest."""

import json
from datetime import UTC, datetime, timedelta

import hypeman
import pytest
from hypeman import Hypeman

from tests.api.stand_in import Served, token
from tests.cli.conftest import Ramet, ramet

__all__ = ("ramet",)

MIB = 1 << 20


def test_what_is_asked_for_is_told_of_each_guest(served: Served) -> None:
    served.fleet.put("web")  # It has 1 GiB.
    with Hypeman(base_url=served.url, api_key=token()) as client:
        dry = client.resources.reclaim_memory(reclaim_bytes=100 * MIB, dry_run=True)
        assert (dry.planned_reclaim_bytes, dry.applied_reclaim_bytes) == (100 * MIB, 0)
        (planned,) = dry.actions
        assert (planned.status, planned.instance_name, planned.hypervisor) == ("planned", "web", "qemu")
        found = client.resources.reclaim_memory(reclaim_bytes=100 * MIB, reason="why")
        (action,) = found.actions
        assert (action.status, action.error) == ("applied", None)
        assert (action.assigned_memory_bytes, action.protected_floor_bytes) == (1024 * MIB, 512 * MIB)
        assert action.previous_target_guest_memory_bytes == 1024 * MIB
        assert action.planned_target_guest_memory_bytes == action.target_guest_memory_bytes == 924 * MIB
        assert found.applied_reclaim_bytes == action.applied_reclaim_bytes == 100 * MIB
        assert (found.host_available_bytes, found.host_pressure_state) == (6 << 30, "healthy")
        assert found.hold_until is not None
        assert timedelta(minutes=4) < found.hold_until - datetime.now(UTC) <= timedelta(minutes=5)
        with pytest.raises(hypeman.BadRequestError, match="hold_for"):
            client.resources.reclaim_memory(reclaim_bytes=MIB, hold_for="0s")


def test_the_command_shows_it(ramet: Ramet, served: Served) -> None:
    served.fleet.put("web")
    exit_code, out, err = ramet("reclaim", "256MB", "--dry-run")
    assert (exit_code, err) == (0, "")
    head, row = out.splitlines()[:2]
    assert head.split()[0] == "INSTANCE"
    assert row.split() == ["web", "1.0GB", "512.0MB", "1.0GB", "768.0MB", "1.0GB", "planned"]
    exit_code, out, _ = ramet("reclaim", "2GB", "--hold-for", "1m", "--reason", "why", "--json")
    assert (exit_code, json.loads(out[out.index("{") :])["applied_reclaim_bytes"]) == (0, 512 * MIB)
    assert ramet("reclaim", "much")[0] == 1
