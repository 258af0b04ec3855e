"""A real guest is asked how it does, in each way; one whose workload dies is started again, ever later."""

import time
from collections.abc import Callable
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.core.health import ExecProbe, HealthCheck, HealthStatus, HttpProbe, TcpProbe
from ramet.core.restart import RestartPolicy, RestartWhen
from ramet.core.spec import InstanceRecord, State
from ramet.core.supervision import Block, judge_restart
from tests.vm.images import ECHO_PORT, HTTP_PORT
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

TIMEOUT_S = 120.0
CHECK = HealthCheck("tcp", TcpProbe(ECHO_PORT), 0.2, 20.0, 0.0, failure_threshold=2, success_threshold=1)
DIES_TWICE = """
test -e /var/twice && until test -e /var/enough; do sleep 0.1; done
test -e /var/once && touch /var/twice
touch /var/once
sync
exit 3
"""


async def until(site: Site, name: str, is_so: Callable[[InstanceRecord], bool]) -> InstanceRecord:
    with anyio.fail_after(TIMEOUT_S):
        while not is_so(record := site.fleet.get(name).record):
            await anyio.lowlevel.checkpoint()
    return record


async def test_a_guest_is_healthy_while_it_answers_and_unhealthy_when_it_does_not(
    site: Site, children: Children, source: str
) -> None:
    checks = {
        "by-tcp": (CHECK, "killall nc", "Connection refused"),
        "by-http": (
            replace(CHECK, kind="http", probe=HttpProbe(HTTP_PORT, "/alive")),
            "rm /www/alive",
            "answered 404, not 200",
        ),
        "by-exec": (
            replace(CHECK, kind="exec", probe=ExecProbe(("sh", "-c", "cat alive || exit 7"), "/www")),
            "rm /www/alive",
            "exited with 7: cat: can't open 'alive': No such file or directory",
        ),
    }
    await children.fork(source, *checks)
    for name, (check, _, _) in checks.items():
        await site.fleet.update(name, {"health_check": check})
    for name, (_, harm, error) in checks.items():
        await until(site, name, lambda record: record.health is HealthStatus.HEALTHY)
        await site.sh(name, harm)
        await until(site, name, lambda record: record.health is HealthStatus.UNHEALTHY)
        found = site.fleet.get(name).health
        assert found is not None
        assert found.last_error == error
        assert found.failures >= CHECK.failure_threshold


async def test_a_guest_that_only_we_ask_sleeps_and_is_not_unhealthy_for_that(
    site: Site, children: Children, source: str
) -> None:
    names = ("dozing-tcp", "dozing-exec")
    await children.fork(source, *names)
    exec_check = replace(CHECK, kind="exec", probe=ExecProbe(("true",)))
    for name, check in zip(names, (CHECK, exec_check), strict=True):
        await site.fleet.update(name, {"health_check": check})
        await until(site, name, lambda record: record.health is HealthStatus.HEALTHY)
        await site.fleet.update(name, {"auto_standby": AutoStandby(True, 2.0)})
    for name in names:
        record = await until(site, name, lambda record: record.state is State.STANDBY)
        assert record.health is HealthStatus.HEALTHY
        found = site.fleet.get(name).health
        assert found is not None
        assert found.failures == 0


async def test_a_guest_whose_workload_dies_is_started_again_later_each_time_until_it_died_too_often(
    site: Site, children: Children
) -> None:
    name, backoff_s = "mortal", 1.0
    children.names.append(name)
    policy = RestartPolicy(RestartWhen.ON_FAILURE, backoff_s, 2, 600.0)
    spec = replace(site.spec(("sh", "-c", DIES_TWICE)), restart_policy=policy)
    before = time.time()
    await site.fleet.create(name, spec)
    first = await until(site, name, lambda record: record.restarts.attempts == 1)
    assert first.restarts.last_at is not None
    assert first.restarts.last_at >= before + backoff_s
    second = await until(
        site, name, lambda record: record.restarts.attempts == 2 and record.state is State.RUNNING
    )
    assert second.restarts.last_at is not None
    assert second.restarts.last_at >= first.restarts.last_at + 2 * backoff_s
    assert second.phases is not None
    assert second.phases.ended_ms["Stopped"] >= 3000 * backoff_s
    await site.sh(name, "touch /var/enough")
    last = await until(site, name, lambda record: record.state is State.STOPPED)
    assert last.exit is not None
    assert last.exit.code == 3
    assert judge_restart(last, time.time()).blocked is Block.ATTEMPTS_EXCEEDED
