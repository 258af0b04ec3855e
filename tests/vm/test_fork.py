"""What a fork must be: itself, with its parent's past, while its parent goes on."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel
import pytest

from ramet.effects import awaken
from ramet.guest.channel import Channel, open_channel
from ramet.guest.identity import GuestIdentity, identify_child
from ramet.vmm.port import Capture
from ramet.vmm.qemu.driver import QemuVm
from ramet.wire.messages import IdentityAnswer
from tests.vm.images import ECHO_PORT
from tests.vm.site import GATEWAY, Children, Site, http_get

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

CHILD_COUNT = 8
DRAW_ATTEMPTS_MAX = 5

LOOPBACK_PAIR = """
mkfifo /dev/shm/listen /dev/shm/speak
exec 3<>/dev/shm/listen 4<>/dev/shm/speak
nc -l -p 9001 <&3 >/dev/shm/inside &
echo $! >/dev/shm/pair.pid
until nc 127.0.0.1 9001 <&4; do sleep 0.1; done
"""


async def _longest_gap_s(ip: str, scope: anyio.CancelScope, gaps: list[float]) -> None:
    """Ask a server again and again; note how long each answer let wait for itself."""
    with scope:
        while True:
            began = time.perf_counter()
            await http_get(ip, "/alive")
            gaps.append(time.perf_counter() - began)


async def test_every_child_is_itself_with_its_parents_past(
    site: Site, source: str, children: Children
) -> None:
    await site.sh(source, "echo memory1 >/dev/shm/state; echo disk1 >/var/state")
    scope, gaps = anyio.CancelScope(), list[float]()
    names = [f"child-{number}" for number in range(CHILD_COUNT)]
    async with anyio.create_task_group() as group:
        group.start_soon(_longest_gap_s, site.ip_of(source), scope, gaps)
        outcomes = await children.fork(source, *names)
        scope.cancel()
    assert gaps, "the source answered during the forks"
    # For whoever reads (pytest -rP): a test is never timed.
    print("longest answer of the source during the forks, ms:", round(max(gaps) * 1000))
    for phase in outcomes[0].timings_ms:
        print(phase, "ms, mean:", round(sum(outcome.timings_ms[phase] for outcome in outcomes) / CHILD_COUNT))

    states = {name: await site.get_state(name) for name in (source, *names)}
    for name, state in states.items():
        assert state["hostname"] == name
        assert state["mac"] == site.fleet.get(name).mac
        assert (state["memory"], state["disk"]) == ("memory1", "disk1")
        assert state["machine_id"] == site.fleet.get(name).record.identity.machine_id
    for fact in ("mac", "machine_id"):
        assert len({state[fact] for state in states.values()}) == CHILD_COUNT + 1
    assert len({site.ip_of(name) for name in states}) == CHILD_COUNT + 1


async def test_a_child_has_the_hosts_time_a_route_and_files_that_say_who_it_is(
    site: Site, source: str, children: Children
) -> None:
    # A clock far behind stands for a capture that is old.
    await site.sh(source, "date -s @1000000000")
    try:
        await children.fork(source, "punctual")
    finally:
        await site.sh(source, f"date -s @{time.time():.0f}")

    before = time.time()
    guest_time = int(await site.sh("punctual", "date +%s"))
    assert before - 2 <= guest_time <= time.time() + 1
    assert await site.sh("punctual", "cat /etc/hostname") == "punctual\n"
    assert f"{site.ip_of('punctual')}" in await site.sh("punctual", "cat /etc/hosts; ip address show eth0")
    places = await site.sh("punctual", "cat /etc/hosts; ip address; ip route")
    assert site.ip_of(source) not in re.split(r"[\s/]", places)
    assert f"default via {GATEWAY} dev eth0" in await site.sh("punctual", "ip route")


async def test_children_draw_randomness_of_their_own_from_their_first_draw_on(
    site: Site, source: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def only_thaw(
        socket_path: Path, identity: GuestIdentity, *, timeout_s: float
    ) -> tuple[Channel, IdentityAnswer]:
        if not identity.hostname.startswith("bare-"):
            return await identify_child(socket_path, identity, timeout_s=timeout_s)
        channel = await open_channel(socket_path, timeout_s=timeout_s)
        await channel.thaw()
        return channel, IdentityAnswer(None, None, "", ran_before_identity=False)

    monkeypatch.setattr(awaken, "identify_child", only_thaw)
    conclusive = False
    for attempt in range(DRAW_ATTEMPTS_MAX):
        names = [f"{kind}-{attempt}" for kind in ("own-a", "own-b", "bare-a", "bare-b")]
        own_a, own_b, bare_a, bare_b = await _draw_in_forks(site, source, children, names)
        # The first line with a child's own name in it is the first thing its workload did after the thaw.
        first = next(index for index, (_, told, _, _) in enumerate(own_a) if told != source)
        assert first > 0
        if own_a[first - 1].after != source:
            continue  # It was frozen in the middle of a draw.
        assert own_a[:first] == own_b[:first] == bare_a[:first], "they went on from one instant"
        assert (own_a[first].before, own_b[first].before) == (names[0], names[1])
        assert len({lines[first].drawn for lines in (own_a, own_b, bare_a)}) == 3
        # Without an identity two children draw the same, unless their kernels, which do so now and then,
        # stir their pools themselves just before; only where they do draw the same, the above says anything.
        conclusive = bare_a[first].drawn == bare_b[first].drawn
        if conclusive:
            break
    assert conclusive


class Draw(NamedTuple):
    """A line of the workload: the host's name before and after it drew."""

    number: str
    before: str
    drawn: str
    after: str


async def _draw_in_forks(
    site: Site, source: str, children: Children, names: Sequence[str]
) -> list[list[Draw]]:
    """Fork a source that draws all the time; return what each child ever drew, its parent's part first."""
    await site.sh(source, "rm -f /dev/shm/drawn; touch /dev/shm/draw; echo >/dev/shm/tick")
    await site.wait_for(source, "test -s /dev/shm/drawn")
    await children.fork(source, *names)
    await site.sh(source, "rm /dev/shm/draw")
    drawn = []
    for name in names:
        line_count = int(await site.sh(name, "wc -l </dev/shm/drawn"))
        await site.wait_for(name, f"test $(wc -l </dev/shm/drawn) -gt {line_count}")
        lines = (await site.sh(name, "cat /dev/shm/drawn")).splitlines()
        drawn.append([Draw(*line.split()) for line in lines])
    return drawn


async def test_a_write_during_another_fork_is_in_the_fork_that_follows_it(
    site: Site, source: str, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, may_go_on = anyio.Event(), anyio.Event()
    copy_ahead = QemuVm.copy_ahead

    async def copy_ahead_slowly(vm: QemuVm, target: Capture) -> int:
        count = await copy_ahead(vm, target)
        copied.set()
        await may_go_on.wait()
        return count

    monkeypatch.setattr(QemuVm, "copy_ahead", copy_ahead_slowly)
    paused = QemuVm.paused
    in_pause = anyio.Event()

    @asynccontextmanager
    async def paused_and_told(vm: QemuVm) -> AsyncIterator[None]:
        async with paused(vm):
            in_pause.set()
            yield

    monkeypatch.setattr(QemuVm, "paused", paused_and_told)
    async with anyio.create_task_group() as group:
        group.start_soon(children.fork, source, "early")
        await copied.wait()
        await site.sh(source, "echo joined >/var/joined; echo joined >/dev/shm/joined")
        group.start_soon(children.fork, source, "joining")
        # One turn of the loop, in which the second fork boards.
        await anyio.lowlevel.checkpoint()
        may_go_on.set()
        await in_pause.wait()

        async def write_and_fork() -> None:
            await site.sh(source, "echo late >/var/late; echo late >/dev/shm/late")
            await children.fork(source, "late")

        group.start_soon(write_and_fork)
    assert await site.sh("joining", "cat /var/joined /dev/shm/joined") == "joined\njoined\n"
    assert await site.sh("late", "cat /var/late /dev/shm/late") == "late\nlate\n"


async def test_inherited_connections_are_dead_in_the_child_and_alive_in_the_source(
    site: Site, source: str, children: Children
) -> None:
    reader, writer = await asyncio.open_connection(site.ip_of(source), ECHO_PORT)
    try:
        writer.write(b"before\n")
        assert await reader.readline() == b"before\n"
        established = "netstat -tn | grep ESTABLISHED || true"
        assert f":{ECHO_PORT}" in await site.sh(source, established + "; pidof cat")
        # A session of its own: the processes of execs end with their host's connection.
        await site.sh(
            source, f"echo '{LOOPBACK_PAIR}' >/dev/shm/pair; setsid sh /dev/shm/pair >/dev/null 2>&1 &"
        )
        await site.wait_for(source, "test -p /dev/shm/speak")
        await site.sh(source, "echo one >/dev/shm/speak")
        await site.wait_for(source, "grep -q one /dev/shm/inside")

        await children.fork(source, "heir")

        in_child = await site.sh("heir", established)
        assert f"{site.ip_of(source)}:" not in in_child
        assert in_child.count("127.0.0.1:9001") == 2
        await site.sh("heir", "echo two >/dev/shm/speak")
        await site.wait_for("heir", "grep -q two /dev/shm/inside")
        # The child's end of the connection is closed, and the process behind it knows.
        await site.wait_for("heir", "! pidof cat")
        writer.write(b"after\n")
        assert await reader.readline() == b"after\n"
        # The listener itself was not destroyed.
        reader_of_child, writer_of_child = await asyncio.open_connection(site.ip_of("heir"), ECHO_PORT)
        writer_of_child.write(b"anew\n")
        assert await reader_of_child.readline() == b"anew\n"
        writer_of_child.close()
    finally:
        writer.close()
        await site.sh(source, "kill $(cat /dev/shm/pair.pid); rm /dev/shm/listen /dev/shm/speak")
