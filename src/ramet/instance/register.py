"""Which instances there are: by age, state, tag and image, so that nobody has to look through all of them."""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State

Place = tuple[float, InstanceId]
"""When an instance was made, in Unix seconds, and its id: what instances are ordered by."""

FEW: Final = 8
"""One in so many: fewer are sorted by themselves, more are picked out of all, which are in order."""


class Register:
    """Told of each instance when it comes, changes and goes."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._by_state: defaultdict[State, set[Place]] = defaultdict(set)
        self._by_tag: defaultdict[tuple[str, str], set[Place]] = defaultdict(set)
        self._image_counts = Counter[str]()

    def add(self, record: InstanceRecord) -> None:
        place = _place(record)
        self._image_counts[record.spec.image_digest] += 1
        insort(self._places, place)
        self._by_state[record.state].add(place)
        for tag in record.spec.tags.items():
            self._by_tag[tag].add(place)

    def change(self, former: InstanceRecord, record: InstanceRecord) -> None:
        """Take note that an instance is another now than it was."""
        place = _place(record)
        if record.state is not former.state:
            self._by_state[former.state].discard(place)
            self._by_state[record.state].add(place)
        if record.spec.tags is not former.spec.tags:
            self._drop_tags(former)
            for tag in record.spec.tags.items():
                self._by_tag[tag].add(place)
        if record.spec.image_digest != former.spec.image_digest:
            self._drop_image(former)
            self._image_counts[record.spec.image_digest] += 1

    def remove(self, record: InstanceRecord) -> None:
        place = _place(record)
        self._drop_image(record)
        del self._places[bisect_left(self._places, place)]
        self._by_state[record.state].discard(place)
        self._drop_tags(record)

    def find(
        self,
        *,
        state: State | None = None,
        tags: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
    ) -> Sequence[Place]:
        """Return who is in `state` and has all of `tags`, where given; oldest first, behind `after`."""
        begin = 0 if after is None else bisect_right(self._places, after)
        filters = [] if state is None else [self._by_state.get(state, set())]
        filters += [self._by_tag.get(tag, set()) for tag in (tags or {}).items()]
        if not filters:
            return self._places[begin:]
        filters.sort(key=len)
        found = filters[0].intersection(*filters[1:])
        if len(found) * FEW < len(self._places):
            return sorted(place for place in found if after is None or place > after)
        return [place for place in self._places[begin:] if place in found]

    def images(self) -> Collection[str]:
        """Return the digests of the images that any instance has."""
        return self._image_counts.keys()

    def _drop_image(self, record: InstanceRecord) -> None:
        digest = record.spec.image_digest
        self._image_counts[digest] -= 1
        if not self._image_counts[digest]:
            del self._image_counts[digest]

    def _drop_tags(self, record: InstanceRecord) -> None:
        place = _place(record)
        for tag in record.spec.tags.items():
            having = self._by_tag[tag]
            having.discard(place)
            if not having:
                del self._by_tag[tag]


def _place(record: InstanceRecord) -> Place:
    return record.identity.created_at, record.id
