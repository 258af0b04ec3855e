"""VMMs that a guest took over: whatever one says or does ends its own session at most."""

import contextlib
import os
from pathlib import Path

import pytest

from ramet.pager import PagerClient, SessionEnd
from tests.pager.conftest import NewVmm, VmmProcess
from tests.pager.test_faults import PAGE_BYTES, make_base, page_content, serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd of kernel faults needs root"),
]

PAGE_COUNT = 64
SIZE_BYTES = PAGE_COUNT * PAGE_BYTES


@pytest.fixture
def base(folder: Path) -> Path:
    return make_base(folder, PAGE_COUNT)


@pytest.fixture
async def bystander(client: PagerClient, new_vmm: NewVmm, base: Path) -> VmmProcess:
    """A VMM that behaves, half of whose memory has not been touched."""
    vmm = await serve(client, new_vmm, "bystander", base, SIZE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    return vmm


async def check_unharmed(bystander: VmmProcess) -> None:
    for page in range(PAGE_COUNT):
        assert await bystander.read(page * PAGE_BYTES, PAGE_BYTES) == page_content(page)


async def failure_of(client: PagerClient, session_id: str) -> str:
    statistics = await client.statistics()
    while any(session.id == session_id for session in statistics.sessions):
        statistics = await client.statistics()
    (end,) = (end for end in statistics.recent_ends if end.id == session_id)
    assert end.how is SessionEnd.FAILED
    return end.reason


GOOD = '[{"base_host_virt_addr": {start}, "size": 262144, "offset": 0}]'
HUGE = '[{"base_host_virt_addr": {start}, "size": 262144, "offset": 0, "page_size": 2097152}]'
OUTSIDE = '[{"base_host_virt_addr": {start}, "size": 262144, "offset": 4096}]'
TWICE = f"[{GOOD[1:-1]}, {GOOD[1:-1]}]"


@pytest.mark.parametrize(
    ("text", "descriptors", "reason"),
    [
        ("GET / HTTP/1.1\r\n\r\n", [], "not JSON"),
        ("[" * 1000, [], "not JSON"),
        (" " * 70_000, [], "too long"),
        ('{"mappings": 1}', [], "not a list of mappings"),
        (GOOD, [], "0 descriptors"),
        (GOOD, ["null"], "not a userfaultfd"),
        (GOOD, ["pipe"], "not a userfaultfd"),
        (GOOD, ["null", "pipe"], "more than one descriptor"),
        (GOOD, ["null"] * 20, "too many descriptors"),
    ],
)
async def test_a_stranger_is_turned_away(
    client: PagerClient,
    new_vmm: NewVmm,
    bystander: VmmProcess,
    base: Path,
    text: str,
    descriptors: list[str],
    reason: str,
) -> None:
    stranger = await new_vmm(await client.open_session("hostile", base, SIZE_BYTES))
    await stranger.ask("map", size=SIZE_BYTES)
    await stranger.ask("greet_badly", text=text, descriptors=descriptors)
    assert await stranger.ask("wait_hung_up")
    assert reason in await failure_of(client, "hostile")
    assert stranger.process.returncode is None  # Its memory did not depend on us.
    await check_unharmed(bystander)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "0 mappings"),
        (HUGE, "2097152"),
        (OUTSIDE, "outside the session"),
        (TWICE, "overlap"),
        (GOOD + "[]", "not JSON"),
    ],
)
async def test_one_that_handed_its_memory_over_is_ended(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, base: Path, text: str, reason: str
) -> None:
    vmm = await new_vmm(await client.open_session("hostile", base, SIZE_BYTES))
    await vmm.ask("map", size=SIZE_BYTES)
    with contextlib.suppress(EOFError):  # It may be ended before it can answer us.
        await vmm.ask("greet_badly", text=text, descriptors=["uffd"])
    assert reason in await failure_of(client, "hostile")
    assert await vmm.process.wait() == -9
    await check_unharmed(bystander)


async def test_hanging_up_within_the_handshake_ends_the_session(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, base: Path
) -> None:
    vmm = await new_vmm(await client.open_session("hostile", base, SIZE_BYTES))
    await vmm.ask("greet_badly", text=GOOD[:20], descriptors=[])
    await vmm.stop()
    assert "hung up" in await failure_of(client, "hostile")
    await check_unharmed(bystander)


async def test_a_fault_outside_the_mappings_ends_the_vmm(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, base: Path
) -> None:
    vmm = await new_vmm(await client.open_session("hostile", base, SIZE_BYTES))
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=[[0, SIZE_BYTES // 2, 0]])
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    with pytest.raises(EOFError):
        await vmm.read(SIZE_BYTES // 2, PAGE_BYTES)
    assert "outside the mappings" in await failure_of(client, "hostile")
    await check_unharmed(bystander)


async def test_a_base_cut_short_ends_the_vmm(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, folder: Path
) -> None:
    short = folder / "short"
    short.write_bytes(b"".join(page_content(page) for page in range(PAGE_COUNT)))
    vmm = await serve(client, new_vmm, "hostile", short, SIZE_BYTES)
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    os.truncate(short, PAGE_BYTES)
    with pytest.raises(EOFError):
        await vmm.read(40 * PAGE_BYTES, PAGE_BYTES)
    assert "cut short" in await failure_of(client, "hostile")
    await check_unharmed(bystander)


async def test_data_that_is_gone_when_it_is_copied_ends_the_vmm(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, folder: Path
) -> None:
    short = folder / "short"
    short.write_bytes(b"".join(page_content(page) for page in range(PAGE_COUNT)))
    first = await serve(client, new_vmm, "first", short, SIZE_BYTES)
    vmm = await serve(client, new_vmm, "hostile", short, SIZE_BYTES)
    assert await first.read(0, SIZE_BYTES) == short.read_bytes()  # Now it is known where data is.
    os.truncate(short, PAGE_BYTES)
    with pytest.raises(EOFError):
        await vmm.read(40 * PAGE_BYTES, PAGE_BYTES)
    assert "filling" in await failure_of(client, "hostile")
    await check_unharmed(bystander)


async def test_one_that_forks_or_makes_reads_wait_is_ended(
    client: PagerClient, new_vmm: NewVmm, bystander: VmmProcess, base: Path
) -> None:
    for session_id, call, reason in (("f", "fork", "0x13"), ("n", "clear_nonblocking", "O_NONBLOCK")):
        vmm = await serve(client, new_vmm, session_id, base, SIZE_BYTES)
        assert await vmm.read(0, PAGE_BYTES) == page_content(0)
        with contextlib.suppress(EOFError):
            await vmm.ask(call)
            await vmm.read(40 * PAGE_BYTES, PAGE_BYTES)
        assert reason in await failure_of(client, session_id)
        assert await vmm.process.wait() == -9
    await check_unharmed(bystander)


async def test_a_socket_is_for_one_vmm(client: PagerClient, new_vmm: NewVmm, base: Path) -> None:
    path = await client.open_session("a", base, SIZE_BYTES)
    vmm, second = await new_vmm(path), await new_vmm(path)
    await vmm.ask("map", size=SIZE_BYTES)
    await vmm.ask("greet", mappings=[[0, SIZE_BYTES, 0]])
    assert await vmm.read(0, PAGE_BYTES) == page_content(0)
    assert not path.exists()
    with pytest.raises(EOFError):
        await second.ask("connect")
