"""A registry of ours for all tests of pulls."""

from collections.abc import Iterator

import pytest

from tests.images.lying_registry import LyingRegistry, lying_registry
from tests.net.namespaces import own_namespace


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    """An empty registry that does not lie yet, in a network namespace with nothing else in it."""
    with own_namespace(), lying_registry() as found:
        yield found
