"""Admitted if it is free, refused in words if not; and what was refused holds what it held."""

import pytest

from ramet.admission.demand import NOTHING, Demand, Resource
from ramet.admission.ledger import InsufficientResources, Ledger, Limit

GIB = 1 << 30


def ledger(cpu: int = 4, memory_bytes: int = GIB, ratio: float = 1.0) -> Ledger:
    return Ledger((Limit(Resource.CPU, cpu), Limit(Resource.MEMORY, memory_bytes, ratio)))


def test_what_is_admitted_is_held_until_it_is_given_back() -> None:
    book = ledger()
    book.admit("a", Demand(1, 100, 10), "instance a")
    book.admit("b", Demand(2, 200, 20), "instance b")
    assert (book.total, book.owner_count) == (Demand(3, 300, 30), 2)
    book.release("a")
    book.release("a")
    assert (book.total, book.held("a"), book.owner_count) == (Demand(2, 200, 20), NOTHING, 1)


def test_a_refusal_names_the_resource_what_was_asked_and_what_is_free() -> None:
    book = ledger()
    book.admit("a", Demand(1, 768 << 20), "instance a")
    with pytest.raises(InsufficientResources) as refused:
        book.admit("b", Demand(1, 512 << 20), "instance b")
    error = refused.value
    assert error.message == ("there is not enough memory for instance b: 512 MiB asked, 256 of 1024 MiB free")
    assert "oversubscription.memory" in error.remedy
    assert error.code == "insufficient_resources"
    assert error.fields == {"resource": "memory", "asked": 512 << 20, "free": 256 << 20, "limit": GIB}
    assert (book.held("b"), book.total) == (NOTHING, Demand(1, 768 << 20))


@pytest.mark.parametrize(
    ("resource", "demand", "shown"),
    [
        (Resource.CPU, Demand(cpu_count=3), "3 vCPUs asked, 2 of 2 vCPUs free"),
        (Resource.DISK, Demand(disk_bytes=(3 << 20) + 1), "4 MiB asked, 0 of 0 MiB free"),
        (Resource.NETWORK, Demand(network_bytes_per_s=125_000_000), "1000 Mbit/s asked, 0 of 0 Mbit/s free"),
        (Resource.DISK_IO, Demand(disk_io_bytes_per_s=50_000_000), "50 MB/s asked, 0 of 0 MB/s free"),
    ],
)
def test_each_resource_is_told_in_its_unit(resource: Resource, demand: Demand, shown: str) -> None:
    with pytest.raises(InsufficientResources) as refused:
        Ledger((Limit(resource, 2),)).admit("a", demand, "instance a")
    assert refused.value.message == f"there is not enough {resource} for instance a: {shown}"


def test_the_last_bit_can_be_had_and_not_one_more() -> None:
    book = ledger(cpu=4)
    for index in range(4):
        book.admit(f"a{index}", Demand(1), "instance")
    with pytest.raises(InsufficientResources):
        book.admit("one more", Demand(1), "instance")
    book.release("a2")
    book.admit("one more", Demand(1), "instance")


def test_a_ratio_makes_more_of_what_there_is() -> None:
    book = ledger(memory_bytes=100, ratio=1.5)
    book.admit("a", Demand(memory_bytes=150), "instance a")
    with pytest.raises(InsufficientResources):
        book.admit("b", Demand(memory_bytes=1), "instance b")


def test_a_resource_nobody_knows_the_size_of_is_counted_and_never_refused() -> None:
    book = Ledger()
    book.admit("a", Demand(1000, 1 << 60, 1 << 60, 1 << 60), "instance a")
    assert book.total == Demand(1000, 1 << 60, 1 << 60, 1 << 60)


def test_what_runs_is_noted_though_it_is_too_much_and_then_nothing_new_is_admitted() -> None:
    book = ledger(cpu=1)
    book.note("a", Demand(3))
    with pytest.raises(InsufficientResources, match="0 of 1 vCPUs free"):
        book.admit("b", Demand(1), "instance b")
    book.admit("a", Demand(2), "instance a")  # Less is always admitted,
    book.admit("a", Demand(2, 1), "instance a")  # and so is what there is enough of.
    assert book.total == Demand(2, 1)


def test_only_what_is_asked_for_beyond_what_is_held_must_be_free() -> None:
    book = ledger(cpu=4)
    book.admit("a", Demand(3), "instance a")
    book.admit("a", Demand(4), "instance a")
    with pytest.raises(InsufficientResources, match="1 vCPUs asked, 0 of 4 vCPUs free"):
        book.admit("a", Demand(5), "instance a")
    assert book.held("a") == Demand(4)


def test_a_limit_can_be_learnt_later() -> None:
    book = Ledger()
    book.note("a", Demand(network_bytes_per_s=80))
    book.limit(Limit(Resource.NETWORK, 50, 2.0))
    assert book.limit_of(Resource.NETWORK).effective == 100
    with pytest.raises(InsufficientResources, match="network"):
        book.admit("b", Demand(network_bytes_per_s=30), "instance b")
