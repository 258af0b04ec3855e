"""The register finds whom a look through all records finds, whatever came, changed and went."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.register import Register

SPEC = InstanceSpec("demo:1", "sha256:0", "fake", 1, 1 << 20, 1 << 20)
states = st.sampled_from([State.RUNNING, State.STOPPED, State.STANDBY])
tag_sets = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
steps = st.lists(st.tuples(st.integers(0, 30), states, tag_sets, st.booleans()), max_size=60)


def made(number: int, state: State, tags: dict[str, str]) -> InstanceRecord:
    """Return a record; some were made in the same instant, and none in the order of their numbers."""
    identity = InstanceIdentity(InstanceId(f"i{number}"), f"vm-{number}", None, "0" * 32, number * 7 % 5)
    return InstanceRecord(replace(SPEC, tags=tags, image_digest=f"sha256:{number % 4}"), identity, state)


@given(steps, st.none() | states, tag_sets, st.none() | st.integers(0, 30))
def test_it_finds_whom_a_look_through_all_finds(
    taken: list[tuple[int, State, dict[str, str], bool]],
    state: State | None,
    tags: dict[str, str],
    after: int | None,
) -> None:
    register, records = Register(), dict[int, InstanceRecord]()
    for number, new_state, new_tags, goes in taken:
        record, former = made(number, new_state, new_tags), records.get(number)
        if former is None:
            register.add(record)
        elif goes:
            register.remove(records.pop(number))
            continue
        else:
            register.change(former, record)
        records[number] = record
    places = sorted(
        (record.identity.created_at, record.id)
        for record in records.values()
        if (state is None or record.state is state) and tags.items() <= record.spec.tags.items()
    )
    place = None if after is None else (float(after * 7 % 5), f"i{after}")
    expected = [found for found in places if place is None or found > place]
    assert list(register.find(state=state, tags=tags, after=place)) == expected
    assert set(register.images()) == {record.spec.image_digest for record in records.values()}


def test_one_that_is_put_on_another_image_has_the_former_no_more() -> None:
    register, first, second = Register(), made(0, State.STOPPED, {}), made(4, State.STOPPED, {})
    register.add(first)
    register.add(second)
    other = replace(first, spec=replace(first.spec, image_digest="sha256:other"))
    register.change(first, other)
    assert set(register.images()) == {"sha256:0", "sha256:other"}
    register.remove(second)
    assert set(register.images()) == {"sha256:other"}
